"""Several machines simulated on one: network namespaces and a link of limited speed and some delay.

Needs root. Kernels of small machines often lack netem, so a process is the link: each namespace
has a TUN device that passes its packets to that process, which delivers each one when a link of
that speed would have.
"""

import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hogwear.system.workers import FORK

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 65000  # bytes; large packets, so that forwarding 1 Gbit/s takes little of a CPU
MAX_QUEUE = 0.2  # seconds of packets waiting for the link; more are dropped, as by a router
MAX_READS = 64  # packets that are read from a device in one go


@dataclass
class Uplink:
    """The packets that one machine is sending."""

    # (time of arrival, device to deliver to, packet)
    queue: deque[tuple[float, int, bytes]] = field(default_factory=deque)
    free_at: float = 0.0  # when the link has sent all of them

    def send(self, packet: bytes, device: int, rate: float, delay: float) -> None:
        """Queue a packet, or drop it if the queue is full; `rate` in bytes/s, `delay` in s."""
        now = time.monotonic()
        if self.free_at - now >= MAX_QUEUE:
            return
        self.free_at = max(self.free_at, now) + len(packet) / rate
        self.queue.append((self.free_at + delay, device, packet))

    def deliver(self, now: float) -> None:
        """Write the packets that have arrived by now to their devices."""
        while self.queue and self.queue[0][0] <= now:
            _, device, packet = self.queue.popleft()
            with suppress(OSError):  # that machine no longer exists
                os.write(device, packet)


@dataclass(frozen=True)
class Network:
    """Machine number N has the address 10.9.0.(N + 1), on its device `line0`."""

    names: list[str]  # of the namespaces
    link: Any  # the process that forwards packets; stop it to cut the network

    def command_on(self, number: int, *command: object) -> list[str]:
        """The command that runs `command` on a machine."""
        return ["ip", "netns", "exec", self.names[number], *map(str, command)]


def address(number: int) -> str:
    return f"10.9.0.{number + 1}"


@contextmanager
def machines(count: int, mbits: float = 1000, delay: float = 0.0) -> Iterator[Network]:
    """Namespaces that each send at `mbits` Mbit/s; packets arrive `delay` seconds later."""
    names = [f"hogwear-{os.getpid()}-{number}" for number in range(count)]
    devices = []
    try:
        for number, name in enumerate(names):
            device = f"hw{os.getpid() % 10000}-{number}"
            devices.append(open_tun(device))
            ip("netns", "add", name)
            ip("link", "set", device, "netns", name)
            inside = ("-n", name)
            ip(*inside, "link", "set", device, "name", "line0")
            ip(*inside, "link", "set", "line0", "mtu", str(MTU), "up")
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "address", "add", f"{address(number)}/24", "dev", "line0")
        rate = mbits * 1e6 / 8
        link = FORK.Process(target=forward_packets, args=(devices, rate, delay), daemon=True)
        link.start()
        try:
            yield Network(names, link)
        finally:
            link.kill()
            link.join()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        for descriptor in devices:
            os.close(descriptor)


def open_tun(name: str) -> int:
    """Create a TUN device: its file descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def forward_packets(devices: list[int], rate: float, delay: float) -> None:
    """Be the link, for ever; `rate` in bytes/s, `delay` in s."""
    uplinks = {device: Uplink() for device in devices}
    while True:
        now = time.monotonic()
        arrivals = [uplink.queue[0][0] for uplink in uplinks.values() if uplink.queue]
        wait = max(0.0, min(arrivals, default=now + 1) - now)
        ready, _, _ = select.select(devices, [], [], wait)
        for device in ready:
            for packet in read_packets(device):
                number = packet[19] - 1  # last byte of the IPv4 destination
                if packet[0] >> 4 == 4 and 0 <= number < len(devices):
                    uplinks[device].send(packet, devices[number], rate, delay)
        now = time.monotonic()
        for uplink in uplinks.values():
            uplink.deliver(now)


def read_packets(device: int) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        for _ in range(MAX_READS):
            yield os.read(device, 65536)
