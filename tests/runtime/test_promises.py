"""What caplet promises about the machine it runs on: no network, no pickle, no code, no processes, no files of its own.

Python tells an audit hook about all of these (PEP 578), however they are reached; what libraries do in C shows in the
home folder, where onnxruntime's telemetry keeps its database.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAPTION = """
import os, sys

FORBIDDEN = ("socket.", "pickle.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove")
CODE = ("exec", "compile")
loaded = False
deed = eval("lambda: " + sys.argv[3])

def watch(event, arguments):
    if event.startswith(FORBIDDEN) or (loaded and event in CODE):
        print(event, arguments, file=sys.stderr)
        os._exit(3)
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        print("written:", arguments, file=sys.stderr)
        os._exit(3)

sys.addaudithook(watch)
import caplet

def caption(photo):
    captioner = caplet.Captioner(sys.argv[1])
    assert captioner.caption(photo).plot(photo)
    assert list(captioner.caption_many([photo, "nowhere.jpg"], on_error="return"))

caption(sys.argv[2])
loaded = True  # every module there is, so whatever compiles or runs code now does so for another reason
caption(sys.argv[2])
deed()
"""


def run(deed: str, bundle: Path, photo: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run CAPTION in a home folder of its own, without variables such as CI's, which alone keep onnxruntime quiet."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CAPTION, str(bundle), str(photo), deed]
    return subprocess.run(command, env=environ, cwd=home, capture_output=True, text=True, check=False)


# As onnxruntime is imported, it calls platform.system(), for which Python runs `ver` there.
@pytest.mark.skipif(sys.platform == "win32", reason="Python itself starts a process to learn the version of Windows")
def test_nothing_is_sent_written_started_or_unpickled(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = run("None", tiny_bundle, photos / "cat.jpg", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    "deed",
    [
        "__import__('socket').socket()",
        "__import__('pickle').loads(b'cbuiltins\\nlen\\n.')",
        "os.system('true')",
        "open('x', 'w')",
        "eval('1')",
    ],
)
def test_the_watch_notices(deed: str, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    assert run(deed, tiny_bundle, photos / "cat.jpg", tmp_path).returncode == 3


def test_onnxruntime_reports_to_nobody() -> None:
    """It decides when it is imported, so `import caplet` tells it before, and also if the program imports it later."""
    code = "import os, caplet; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
