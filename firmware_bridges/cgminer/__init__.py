"""The cgminer API on TCP 4028, the base that most ASIC firmwares share."""
