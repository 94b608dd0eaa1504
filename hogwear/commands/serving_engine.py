"""The process that predicts for `serve`, which starts it; not for people.

python -m hogwear.commands.serving_engine DESCRIPTOR SETTINGS
"""

import json
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import model
from hogwear.data.decoding import Limits
from hogwear.serving.engine import Engine, Predictor
from hogwear.serving.messages import Failed
from hogwear.system import errors, machine
from hogwear.system.errors import BadInput


def main(descriptor: int, settings: dict[str, object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends when the application has drained
    connection = Connection(descriptor)
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    limits = Limits(int(str(settings["max_megapixels"])), int(str(settings["max_megabytes"])))
    try:
        dtype = model.choose_dtype(Path(str(settings["cache_dir"])))
        trained = model.load(Path(str(settings["model_dir"])), dtype)
    except BadInput as error:
        connection.send(Failed(str(error), error.exit_code))
        return
    except Exception as error:
        if not (errors.is_out_of_memory(error) or isinstance(error, OSError)):
            raise
        connection.send(Failed(f"the checkpoint could not be loaded: {error}", 2))
        return
    predictor = Predictor(trained, limits, float(str(settings["unknown_rate"])))
    Engine(connection, predictor, machine.cpus(), limits).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
