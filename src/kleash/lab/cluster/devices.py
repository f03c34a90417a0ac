"""Machines: peaks as published, the shares of them that are reached, and what a collective takes on them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One processor of a cluster. Rates are of one direction."""

    name: str
    peak: float
    """FLOP/s of dense products in the type that is computed in."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes/s to its own memory."""
    link: float
    """Bytes/s to another in its node."""
    network: float
    """Bytes/s of its share of the node's network."""
    host: float
    """Bytes/s to the host's memory."""
    node: int = 8
    """How many are linked."""
    products: float = 0.35
    """Share of the peak in products of many rows, by this package's count of operations, attention causal."""
    reads: float = 0.8
    """Share of the bandwidth."""
    sends: float = 0.8
    """Share of link and network."""
    kept: float = 0.1
    """Share of the memory that is left for the driver, the communicator and fragments."""
    latency: float = 1e-5
    """Seconds before the first byte of a collective."""
    launch: float = 0.0
    """Seconds to start a kernel that nothing hides; 0 where a graph is replayed or kernels are long."""
    source: str

    @property
    def flops(self) -> float:
        """FLOP/s that are reached."""
        return self.peak * self.products

    @property
    def stream(self) -> float:
        """Bytes/s of its memory that are reached."""
        return self.bandwidth * self.reads

    def wire(self, members: int, stride: int) -> float:
        """Bytes/s at which a group passes data round: `members` processors, every `stride`-th of the cluster.

        Inside a node that is the link. Beyond, a ring leaves a node once for each network card of the members that
        are in it, so that a group with k of them there has k cards' rate, at most the link's.

        Examples:
            >>> h100 = DEVICES["h100"]
            >>> [round(h100.wire(*group) / 1e9) for group in ((8, 1), (64, 1), (8, 8))]
            [360, 320, 40]
        """
        if members * stride <= self.node:
            return self.link * self.sends
        inside = max(1, self.node // stride)
        return min(self.link, inside * self.network) * self.sends

    def gather(self, size: float, members: int, stride: int = 1) -> float:
        """Seconds of an all-gather, or reduce-scatter, of `size` bytes: (n − 1)/n·size, and its latency."""
        if members <= 1:
            return 0.0
        share = (members - 1) / members
        return share * size / self.wire(members, stride) + self.latency

    def reduce(self, size: float, members: int, stride: int = 1) -> float:
        """Seconds of an all-reduce by a ring, 2·(n − 1)/n·size: a reduce-scatter and an all-gather."""
        return 2 * self.gather(size, members, stride)


DEVICES = {
    device.name: device
    for device in (
        Device(
            name="h100",
            peak=989e12,
            memory=80e9,
            bandwidth=3.35e12,
            link=450e9,
            network=50e9,
            host=64e9,
            source="H100 SXM5: 989 TFLOP/s bf16 dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways, 400 Gb/s a GPU",
        ),
        Device(
            name="h200",
            peak=989e12,
            memory=141e9,
            bandwidth=4.8e12,
            link=450e9,
            network=50e9,
            host=64e9,
            source="H200 SXM: H100's chip with 141 GB at 4.8 TB/s",
        ),
        Device(
            name="a100",
            peak=312e12,
            memory=80e9,
            bandwidth=2.039e12,
            link=300e9,
            network=25e9,
            host=32e9,
            products=0.48,
            sends=0.7,
            source="A100 80 GB SXM4: 312 TFLOP/s bf16 dense, 2.039 TB/s, NVLink 600 GB/s both ways, 200 Gb/s a GPU",
        ),
    )
}
"""By name. `products` are as torchtitan's rates of Llama 3.1 8B give them (docs/scaling.md)."""
