"""What several families of classifiers share: solvers, kernels, sigmoids and trees."""
