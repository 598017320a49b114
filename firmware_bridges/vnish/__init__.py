"""VNish (AnthillOS): REST with a token, and the cgminer API."""
