#!/usr/bin/env bash
# Run the three commands in Docker, as a user does, and check their results. Needs only Docker.
#
#     tests/smoke_test.sh
#
# Builds the images; then trains, evaluates and predicts on the built-in sample and on fashion5 (the
# folder FASHION5, or ../shared/data/fashion5), and checks the results on the host and in a container.
# Works in a temporary copy, with a project and images of its own, so that your model/, responses/,
# volume and images are not touched. Nothing remains but the build cache.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

fashion5=${FASHION5:-../shared/data/fashion5}
export COMPOSE_PROJECT_NAME=hogwear-smoke-$$
export HOGWEAR_IMAGE=$COMPOSE_PROJECT_NAME
unset COMPOSE_FILE # and all settings, so that the defaults are tested
unset HOGWEAR_{ARCH,IMAGE_SIZE,EPOCHS,TIME_BUDGET,WORKERS,BATCH_SIZE,LR,MOMENTUM,NO_MIRROR,SEED,FRESH}
unset HOGWEAR_{PICTURES,NUM_IMAGES,IMAGES,MAX_MEGAPIXELS,MAX_MEGABYTES,PIDS}

export HOGWEAR_PORT=$((20000 + $$ % 20000))

work=$(mktemp -d "${TMPDIR:-/tmp}/hogwear-smoke.XXXXXX")
log=$work/log
passed=0 failed=0 child=

clean_up() {
  trap - EXIT INT TERM
  [ -z "$child" ] || kill "$child" 2> /dev/null || true
  local ours=label=com.docker.compose.project=$COMPOSE_PROJECT_NAME
  docker ps --all --quiet --filter "$ours" | while read -r id; do docker rm --force "$id"; done > /dev/null
  docker volume ls --quiet --filter "$ours" | while read -r id; do docker volume rm "$id"; done > /dev/null
  docker image rm "$HOGWEAR_IMAGE"-{train,eval,infer} > /dev/null 2>&1 || true
  cd /
  chmod -R u+w "$work" # photos copied from a read-only folder
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, because bash handles signals only between foreground commands.
run_and_wait() {
  "$@" < /dev/null > "$log" 2>&1 &
  child=$!
  local code=0
  wait "$child" || code=$?
  child=
  return "$code"
}

check() { # 'description' COMMAND...
  local description=$1 start=$SECONDS
  shift
  if run_and_wait "$@"; then
    passed=$((passed + 1))
    printf 'ok      %s (%d s)\n' "$description" $((SECONDS - start))
  else
    failed=$((failed + 1))
    printf 'FAILED  %s: %s\n' "$description" "$*"
    tail -n 40 "$log" | sed 's/^/        | /'
  fi
}

service() { docker compose run --rm -T "$@"; }
inside() { service --user "$(id -u):$(id -g)" --entrypoint python infer -c "$1"; }

resumes() { service train "$@" | tee /dev/stderr | grep '^Resuming'; }
all_ours() { ! find model responses ! -user "$(id -u)" | grep .; }
fresh() { [ -s "$1" ] && [ "$1" -nt started ]; }
test_acc() { sed -n 's/.*"test_acc": *\([0-9.]*\).*/\1/p' model/eval_results.json; }
at_least() { awk -v value="$2" -v floor="$1" 'BEGIN { exit !(value != "" && value >= floor) }'; }
five_pictures() {
  [ "$(find responses/results -type f | wc -l)" -eq 5 ] || return 1
  for picture in responses/results/*.png; do
    # A PNG file's first eight bytes and its last chunk.
    [ "$(head -c 8 "$picture" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] || return 1
    [ "$(tail -c 8 "$picture" | od -An -tx1 | tr -d ' \n')" = 49454e44ae426082 ] || return 1
  done
}

predicts() {
  local answer photo
  photo=$(find responses/results -name '*.png' | head -n 1)
  answer=$(curl --silent --fail --max-time 20 --form "photos=@$photo" "http://127.0.0.1:$HOGWEAR_PORT/predict")
  printf '%s\n' "$answer"
  [[ $answer == '{"predictions":[{"file":'*'"predicted":"'* ]]
}

pipeline() { # NAME MINIMUM_ACCURACY
  local name=$1 minimum=$2
  rm -rf model responses
  mkdir model responses
  touch started
  sleep 1 # so that new files are newer on any file system
  check "$name: train" service train
  check "$name: eval" service eval
  check "$name: infer" service infer
  check "$name: model/checkpoint.pt is new" fresh model/checkpoint.pt
  check "$name: model/eval_results.json is new" fresh model/eval_results.json
  local accuracy
  accuracy=$(test_acc || true)
  check "$name: test accuracy is at least $minimum: $accuracy" at_least "$minimum" "$accuracy"
  check "$name: there are exactly five pictures, in PNG" five_pictures
  check "$name: everything belongs to user $(id -u)" all_ours
  check "$name: checkpoint, results and pictures can be opened in a container and belong to us" inside "
import glob, json, os, PIL.Image, torch
torch.load('model/checkpoint.pt', weights_only=True)
assert json.load(open('model/eval_results.json'))['test_acc'] >= $minimum
pictures = glob.glob('responses/results/*.png')
assert len(pictures) == 5 and all(PIL.Image.open(file).load() for file in pictures)
files = [file for folder in ('model', 'responses') for file in glob.glob(folder + '/**', recursive=True)]
assert {os.stat(file).st_uid for file in files} == {os.getuid()}"
  check "$name: serve is healthy" docker compose up --detach --wait serve
  check "$name: serve predicts a photo" predicts
  check "$name: serve stops" docker compose --profile serve down
  check "$name: train again resumes" resumes --epochs 1
  check "$name: everything still belongs to user $(id -u)" all_ours
}

if ! docker info > /dev/null 2>&1 || ! docker compose version > /dev/null 2>&1; then
  echo 'error: Docker with Compose is not running; start it and try again' >&2
  exit 2
fi

# Set every limit, to all that the engine has.
HOGWEAR_MEMORY=$(docker info --format '{{.MemTotal}}') HOGWEAR_CPUS=$(docker info --format '{{.NCPU}}')
export HOGWEAR_MEMORY HOGWEAR_CPUS

cp -R docker-compose.yml Dockerfile.* .dockerignore docker requirements*.txt ./*.py hogwear "$work"
photos=
if [ -d "$fashion5" ]; then photos=$(cd "$fashion5" && pwd); fi
cd "$work"
mkdir data
check 'the images build' docker compose build
if [ "$failed" -eq 0 ]; then
  pipeline 'built-in sample' 0.9
  if [ -n "$photos" ]; then
    cp -R "$photos/." data
    pipeline fashion5 0.98 # with ten seeds: 0.989 to 0.998 in bfloat16, 0.990 to 1.000 in float32
  else
    printf '!!! SKIPPED: no photos at %s; set FASHION5 to a folder with train/, val/ and test/ !!!\n' "$fashion5"
  fi
fi

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
