"""Classical classifiers on frozen features: one module a family, all of the same shape.

A family's module has

- ``Params``: its block of params.yaml, a `search.Search`;
- ``Fitter``: a `family.Fitter`, made once for a sweep; its ``fit`` trains one candidate and keeps what the next one can
  use: `family.Task.prepared` for scaled features, attributes of its own for a kernel matrix or a binned data set;
- ``load(directory) -> family.Model``: what ``Model.save(directory)`` wrote.

Importing a family imports no learning library; making its Fitter and ``load`` do. A new family is one module here, one
line in `table` and one block in params.yaml (docs/extending.md). Families share the solvers `newton`,
`squared_hinge` and `sigmoid`, the early stopping of `boosting`, and `trees` that are kept as arrays. `search` says
which candidates there are, `proposals` which one is next.
"""
