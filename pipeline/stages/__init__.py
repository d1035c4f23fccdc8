"""The verbs of dvc.yaml, one module a stage: read, call one function, write.

Every stage module states its contract in four names, and tests compare them with dvc.yaml:

- ``READS``: the keys of params.yaml it may read;
- ``INPUTS``: the files and directories it reads;
- ``OUTPUTS``: the files and directories it writes;
- ``main(params, *, log, **item)``: does the work.

Names in braces stand for the matrix item, as in ``{backbone}``, or, dotted, for a value of params.yaml, as in
``{dataset.path}``; `pipeline.core.provenance.resolve` fills them. Stages never import stages.
"""
