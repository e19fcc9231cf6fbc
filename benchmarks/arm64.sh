#!/usr/bin/env bash
# Whether caplet says on ARM64 what it says here: three processors emulated by QEMU, each with kernels of its own in
# onnxruntime, and the wheels that pip chooses there.
#
#     benchmarks/arm64.sh .venv/bin/python      as root, on Debian or Ubuntu; the environment has `.[dev]`
#
# Installs qemu-user-static and debootstrap where they are missing. Takes minutes; times under emulation mean nothing.
set -euo pipefail
python=$(realpath --no-symlinks "${1:?give the Python of an environment with .[dev]}")
cd "$(dirname "$0")/.."
photos=("$PWD"/tests/photos/*.jpg)
export DEBIAN_FRONTEND=noninteractive
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{ command -v qemu-aarch64-static && command -v debootstrap; } >/dev/null ||
    { apt-get update -qq && apt-get install -qq --no-install-recommends qemu-user-static debootstrap; } >/dev/null

# A Debian for ARM64, unpacked and not set up (that is minutes of emulation): its loader, its libraries, its Python.
root=$work/root
debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libpython3.11-stdlib bookworm "$root" >/dev/null
for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
platforms=()
for glibc in 17 27 28 34; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m build --wheel --outdir "$work" . >/dev/null
"$python" -m pip install --quiet --target "$work/site" "${platforms[@]}" --platform manylinux2014_aarch64 \
    --python-version 3.11 --only-binary=:all: "$work"/*.whl

# What Linux says of such processors; onnxruntime chooses its kernels by it.
cpuinfo() { printf 'processor\t: 0\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU part\t: %s\n\n' "$2" "$3" >"$work/$1"; }
cpuinfo cortex-a72 "fp asimd evtstrm crc32 cpuid" 0xd08  # Raspberry Pi 4
dotprod="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
cpuinfo cortex-a76 "$dotprod" 0xd0b  # Raspberry Pi 5
cpuinfo max "$dotprod sve svei8mm svebf16 i8mm bf16" 0xd40  # servers

cat >"$work/say.py" <<'EOF'
import sys
import numpy as np
from caplet import Captioner
from caplet.image import load_pixels
from caplet.machine import describe_cpu

captioner = Captioner(threads=2)
print(*describe_cpu()["features"], flush=True)
captions = [captioner.caption(photo) for photo in sys.argv[2:]]
pixels = np.stack([load_pixels(photo, size=(299, 299)) for photo in sys.argv[2:]])
features, keys, state = captioner.sessions.encode(pixels)
np.savez(sys.argv[1], text=[caption.text for caption in captions], score=[caption.score for caption in captions],
         pixels=pixels, features=features, keys=keys, state=state)
EOF
cat >"$work/compare.py" <<'EOF'
import sys
import numpy as np

here, there = map(np.load, sys.argv[1:])
for name in here:
    if name == "text":
        print("captions:", sum(here[name] == there[name]), "of", len(here[name]), "the same")
        assert (here[name] == there[name]).all(), (here[name], there[name])
    else:
        apart = np.abs(here[name].astype(float) - there[name]).max()
        print(f"{name}: at most {apart:.1g} apart" if apart else f"{name}: the same to the last bit")
        assert apart <= 1e-4
EOF

cd "$work"
"$python" say.py here.npz "${photos[@]}"
for processor in cortex-a72 cortex-a76 max; do
    echo "-- $processor"
    unshare --mount bash -c 'mount --bind "$0" /proc/cpuinfo && exec "$@"' "$work/$processor" \
        env QEMU_CPU="$processor" PYTHONPATH="$work/site" \
        qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" say.py there.npz "${photos[@]}"
    "$python" compare.py here.npz there.npz
done
