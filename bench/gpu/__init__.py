"""Parts of the bench `gpu-switch`: gate, wire, workloads, and the supervisor without CUDA."""
