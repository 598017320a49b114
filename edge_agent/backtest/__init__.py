"""Back-test: the decision over any span of real prices, against baselines and the clairvoyant."""
