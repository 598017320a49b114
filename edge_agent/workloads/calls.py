"""The acts of a GPU as its host is asked for them; asked for ahead or at once, they are equal."""

from edge_agent.workloads.ports import HostCall, InstanceSpec


def mine(gpu: str, *, on: bool) -> HostCall:
    """Start or stop the miner."""
    return HostCall(op="mine", gpu=gpu, on=on)


def prepare(gpu: str, spec: InstanceSpec) -> HostCall:
    """Make an instance exist."""
    return HostCall(
        op="prepare",
        gpu=gpu,
        instance_id=spec.instance_id,
        lease_id=spec.lease_id,
        attempt=spec.attempt,
        run_s=spec.run_s,
    )


def activate(gpu: str, instance_id: str) -> HostCall:
    """Make an instance ready."""
    return HostCall(op="activate", gpu=gpu, instance_id=instance_id)


def canary(gpu: str, instance_id: str, prompt: str) -> HostCall:
    """Have an instance say something."""
    return HostCall(op="canary", gpu=gpu, instance_id=instance_id, prompt=prompt)


def gate(gpu: str, instance_id: str, *, is_open: bool) -> HostCall:
    """Open or shut a gate."""
    return HostCall(op="gate", gpu=gpu, instance_id=instance_id, open=is_open)


def stop(gpu: str, instance_id: str) -> HostCall:
    """Remove an instance."""
    return HostCall(op="stop", gpu=gpu, instance_id=instance_id)
