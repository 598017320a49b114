"""WhatsMiner stock firmware (btminer): API v1 and v2 on TCP 4028, v3 on TCP 4433."""
