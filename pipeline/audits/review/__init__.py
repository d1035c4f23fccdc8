"""The reproducibility review: replay a revision, judge every output and metric against its claims, say why one differs.

A review reads a revision twice, in two clones: one is replayed, the other holds what is claimed. Judging is pure:
digests, files and predictions in, verdicts and causes out.
"""
