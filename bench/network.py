"""Machines on one host: network namespaces, joined by a line of so many Mbit/s and so much delay. Needs root.

The kernels of small machines have no netem, so a process is the line: each namespace has a TUN device, which hands its
packets to that process, and it lets each of them go when a line like that would have.
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
MTU = 65000  # bytes: so large that forwarding 1 Gbit/s of them takes little of a CPU
LONGEST_QUEUE = 0.2  # seconds of packets that wait for the line; more are dropped, as a router does


@dataclass
class Uplink:
    """What one machine sends."""

    waiting: deque[tuple[float, int, bytes]] = field(
        default_factory=deque
    )  # (when it arrives, device to leave by, packet)
    free: float = 0.0  # when the line has sent all of them


@dataclass(frozen=True)
class Network:
    """Machines number 0 and up are at 10.9.0.1 and up, on their device `line0`."""

    names: list[str]  # of their namespaces
    line: Any  # the process that carries the packets: stop it, and the network is cut

    def inside(self, number: int, *command: object) -> list[str]:
        """The command, to run on a machine."""
        return ["ip", "netns", "exec", self.names[number], *map(str, command)]


def address(number: int) -> str:
    return f"10.9.0.{number + 1}"


@contextmanager
def machines(count: int, mbits: float = 1000, delay: float = 0.0) -> Iterator[Network]:
    """So many namespaces; each sends with so many Mbit/s, and what it sends arrives `delay` seconds later."""
    names = [f"hogwear-{os.getpid()}-{number}" for number in range(count)]
    devices = []
    try:
        for number, name in enumerate(names):
            device = f"hw{os.getpid() % 10000}-{number}"
            devices.append(tun(device))
            ip("netns", "add", name)
            ip("link", "set", device, "netns", name)
            inside = ("-n", name)
            ip(*inside, "link", "set", device, "name", "line0")
            ip(*inside, "link", "set", "line0", "mtu", str(MTU), "up")
            ip(*inside, "link", "set", "lo", "up")
            ip(*inside, "address", "add", f"{address(number)}/24", "dev", "line0")
        line = FORK.Process(target=forward, args=(devices, mbits * 1e6 / 8, delay), daemon=True)
        line.start()
        try:
            yield Network(names, line)
        finally:
            line.kill()
            line.join()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        for descriptor in devices:
            os.close(descriptor)


def tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def forward(devices: list[int], rate: float, delay: float) -> None:
    """Be the line, for ever; `rate` in bytes/s."""
    links = {device: Uplink() for device in devices}
    while True:
        now = time.monotonic()
        nearest = min(
            (link.waiting[0][0] for link in links.values() if link.waiting), default=now + 1
        )
        ready, _, _ = select.select(devices, [], [], max(0.0, nearest - now))
        now = time.monotonic()
        for device in ready:
            link = links[device]
            for _ in range(64):
                try:
                    packet = os.read(device, 65536)
                except BlockingIOError:
                    break
                number = packet[19] - 1  # of IPv4's destination the last byte
                if (
                    packet[0] >> 4 == 4
                    and 0 <= number < len(devices)
                    and link.free - now < LONGEST_QUEUE
                ):
                    link.free = max(link.free, now) + len(packet) / rate
                    link.waiting.append((link.free + delay, devices[number], packet))
        for link in links.values():
            while link.waiting and link.waiting[0][0] <= now:
                _, into, packet = link.waiting.popleft()
                with suppress(OSError):  # that machine is gone
                    os.write(into, packet)
