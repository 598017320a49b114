"""The pure core of the agent: arguments in, values out; `now` is an argument."""
