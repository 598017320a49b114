"""From MQTT to committed rows and application acks."""
