"""Classical classifiers on frozen features: one module a family, all of the same shape.

A family's module has

- ``Params``: its block of params.yaml, a `search.Search`;
- ``fit(parameters, train, validation, *, n_classes, params, seed, threads) -> family.Fit``: a pure function;
- ``load(directory) -> family.Model``: what ``Model.save(directory)`` wrote.

Importing a family imports no learning library; ``fit`` and ``load`` do. A new family is one module here, one line in
`table` and one block in params.yaml.
"""
