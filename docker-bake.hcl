# A release: the three images of docker-compose.yml, which buildx reads, too, tagged with the version.
# docs/release.md
variable "HOGWEAR_IMAGE" { default = "hogwear" } # registry/name; -train etc. is added
variable "HOGWEAR_VERSION" { default = "development" }

group "default" { targets = ["train", "eval", "infer"] }
target "train" { tags = ["${HOGWEAR_IMAGE}-train:${HOGWEAR_VERSION}"] }
target "eval" { tags = ["${HOGWEAR_IMAGE}-eval:${HOGWEAR_VERSION}"] }
target "infer" { tags = ["${HOGWEAR_IMAGE}-infer:${HOGWEAR_VERSION}"] }
