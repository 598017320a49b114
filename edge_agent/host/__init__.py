"""The workload host: gates, meters, engines and the reverse proxy of the GPUs of one machine."""
