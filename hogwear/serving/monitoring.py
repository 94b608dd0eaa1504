"""What GET /metrics shows, in the text format of Prometheus."""

from collections import Counter
from dataclasses import dataclass, field

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


@dataclass
class Metrics:
    """Counts since the server was started."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    photos: Counter[str] = field(default_factory=Counter)  # "predicted" or "refused"
    buckets: Counter[float] = field(default_factory=Counter)
    seconds: float = 0.0

    def count_request(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        if path == "/predict":
            self.seconds += seconds
            self.buckets[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1

    def count_photo(self, is_refused: bool) -> None:
        self.photos["refused" if is_refused else "predicted"] += 1

    def format(self, waiting: int, restarts: int) -> str:
        """`waiting` photos have no answer yet; the engine was started again `restarts` times."""
        lines = ["# TYPE hogwear_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'hogwear_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE hogwear_photos_total counter")
        for result in "predicted", "refused":
            lines.append(f'hogwear_photos_total{{result="{result}"}} {self.photos[result]}')
        lines.append("# TYPE hogwear_predict_seconds histogram")
        total = 0
        for bound in (*BUCKETS, float("inf")):
            total += self.buckets[bound]
            name = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'hogwear_predict_seconds_bucket{{le="{name}"}} {total}')
        lines += [
            f"hogwear_predict_seconds_sum {self.seconds:.6f}",
            f"hogwear_predict_seconds_count {total}",
            "# TYPE hogwear_photos_waiting gauge",
            f"hogwear_photos_waiting {waiting}",
            "# TYPE hogwear_engine_restarts_total counter",
            f"hogwear_engine_restarts_total {restarts}",
        ]
        return "\n".join(lines) + "\n"
