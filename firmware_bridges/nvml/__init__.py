"""NVIDIA GPUs through NVML: telemetry in a child process, health, metrics, and control apart."""
