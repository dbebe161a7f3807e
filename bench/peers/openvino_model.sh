#!/usr/bin/env bash
# OpenVINO's int4 model of a checkpoint, by optimum-intel in an environment of its own.
#
#   bench/peers/openvino_model.sh BASE OUT
#
# Stateful, linears int4 (symmetric, groups of 128), embedding and head int8. About two minutes and
# 3 GB of memory, besides the environment (ENVIRONMENT, default: a temporary one; about 2 GB).
set -euo pipefail
base=$(realpath "$1")
out=$(realpath -m "$2")
here=$(dirname "$(realpath "$0")")
if [ -n "${ENVIRONMENT:-}" ]; then
  environment=$ENVIRONMENT
else
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
fi
if [ ! -x "$environment/bin/optimum-cli" ]; then
  "${PYTHON:-python3.11}" -m venv "$environment"
  pins=$environment/pins.txt
  sed -n 's/^torch==.*/&+cpu/p' "$here/../../constraints.txt" > "$pins"
  "$environment/bin/pip" install --quiet -r "$pins"
  "$environment/bin/pip" install --quiet -c "$pins" optimum-intel==2.2.0 transformers==5.0.0
  # It comes in another build than torch's, and text needs none.
  "$environment/bin/pip" uninstall --quiet --yes torchvision
fi
"$environment/bin/optimum-cli" export openvino --model "$base" --task text-generation-with-past \
  --weight-format int4 --group-size 128 --ratio 1.0 --sym "$out"
