"""The agent's hands on its ASICs: polling, sleep and wake, and the fake fleet for simulation."""
