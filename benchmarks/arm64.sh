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

same=$PWD/benchmarks/same_elsewhere.py
cd "$work"
"$python" "$same" run here.npz "${photos[@]}"
for processor in cortex-a72 cortex-a76 max; do
    echo "-- $processor"
    unshare --mount bash -c 'mount --bind "$0" /proc/cpuinfo && exec "$@"' "$work/$processor" \
        env QEMU_CPU="$processor" PYTHONPATH="$work/site" \
        qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" "$same" run there.npz "${photos[@]}"
    "$python" "$same" compare here.npz there.npz
done
