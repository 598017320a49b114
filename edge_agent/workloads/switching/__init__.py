"""How one engine leaves a GPU and another enters it: what fits, which way, what it costs."""
