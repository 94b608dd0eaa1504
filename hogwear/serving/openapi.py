"""The description of the API that GET /openapi.json returns."""

from typing import Any

from hogwear import __version__
from hogwear.serving.bodies import FIELD

Schema = dict[str, Any]


def json_content(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def problems(**more: str) -> Schema:
    """The responses that any request may get, and more of them, {"_422": description}."""
    common = {
        "_401": "The token is missing or wrong.",
        "_403": "The Host or Origin header is not allowed.",
    }
    return {
        status.lstrip("_"): {"description": text, "content": json_content(reference("Error"))}
        for status, text in (common | more).items()
    }


BODY_PROBLEMS = {
    "_400": "The body is not a valid form, or has no photo.",
    "_408": "The body took too long to arrive.",
    "_413": "The body has too many photos or bytes.",
    "_415": "The body is neither a photo nor a form.",
    "_503": "Too many photos are waiting; see Retry-After.",
}
PHOTO = {"type": "string", "format": "binary"}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {FIELD: {"type": "array", "items": PHOTO, "minItems": 1}},
                "required": [FIELD],
            }
        },
        "image/*": {"schema": PHOTO},
        "application/octet-stream": {"schema": PHOTO},
    },
}
PREDICTION = {
    "type": "object",
    "required": ["file", "error", "probabilities"],
    "properties": {
        "file": {"type": "string", "description": "what the client calls the photo"},
        "error": {"type": ["string", "null"], "description": "why it could not be read"},
        "predicted": {"type": "string", "description": "the most probable class"},
        "probability": PROBABILITY,
        "unsure": {"type": "boolean"},
        "unknown": {"type": ["boolean", "null"], "description": "null: this model cannot tell"},
        "probabilities": {"type": "object", "additionalProperties": PROBABILITY},
    },
}
PREDICTIONS = {
    "type": "object",
    "required": ["predictions"],
    "properties": {"predictions": {"type": "array", "items": reference("Prediction")}},
}
OPENAPI: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "Hogwear", "version": __version__, "description": "Classifies photos."},
    "paths": {
        "/predict": {
            "post": {
                "summary": "The class of each photo, in the order of the photos",
                "requestBody": BODY,
                "responses": {
                    "200": {
                        "description": "An entry for each photo, some of them with an error.",
                        "content": json_content(PREDICTIONS),
                    },
                    **problems(**BODY_PROBLEMS, _422="The only photo cannot be read."),
                },
            }
        },
        "/explain": {
            "post": {
                "summary": "What the network looked at in one photo",
                "requestBody": BODY,
                "responses": {
                    "200": {
                        "description": "The photo in grey, with evidence in orange.",
                        "content": {"image/png": {"schema": PHOTO}},
                    },
                    **problems(**BODY_PROBLEMS, _422="The photo cannot be read."),
                },
            }
        },
        "/health": {
            "get": {
                "summary": "Whether a model is in service, and which",
                "responses": {
                    "200": {
                        "description": "A model is in service.",
                        "content": json_content({"type": "object", "required": ["status"]}),
                    },
                    **problems(),
                },
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counters in the text format of Prometheus",
                "responses": {
                    "200": {
                        "description": "The counters.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    },
                    **problems(),
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Prediction": PREDICTION,
            "Error": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            },
        }
    },
}
