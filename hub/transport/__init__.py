"""MQTT for the hub: the only importer of aiomqtt here."""
