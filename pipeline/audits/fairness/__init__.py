"""Is the comparison fair? What leaks, what is chance, what choosing adds to a score, how often test was looked at.

Studies beside the pipeline: nothing here is read by a stage, and nothing may be chosen by it. Each module computes one
section; `page` and `plots` draw what the sections found, from their JSON alone.
"""
