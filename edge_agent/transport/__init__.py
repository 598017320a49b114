"""MQTT transport of the agent: the only importer of aiomqtt and paho here."""
