"""Pure rules of the hub: arguments in, values out."""
