"""Downloads from a server on this machine that speaks the Hub's routes, each in a process of its own."""

import base64
import contextlib
import fcntl
import hashlib
import os
import pickle
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch
import timm
import torch
from hub_server import HostedFile, HubServer
from safetensors.numpy import save
from safetensors.torch import save as save_tensors
from warm_python import WarmPython, run_vitseg

from vitseg_zoo.weights.check import read_sha256
from vitseg_zoo.weights.checkpoint import read_checkpoint
from vitseg_zoo.weights.entry import NVIDIA_LICENSE

NAME = "segformer_b0.smp_ade20k_512"
REPO = "smp-hub/segformer-b0-512x512-ade-160k"
FILE = f"{REPO}/model.safetensors"
WEIGHTS = save({"weight": np.arange(5000, dtype=np.float32)})


@pytest.fixture
def hub():
    with HubServer({FILE: HostedFile(WEIGHTS)}) as server:
        yield server


@pytest.fixture
def environment(hub, tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "NO_PROXY": "*",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # may have another huggingface_hub
    }


FETCH = """
    import sys
    from vitseg_zoo.weights.download import fetch
    try:
        print(fetch(sys.argv[1]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def start(environment, source=NAME, code=FETCH):
    return WarmPython(code, source, environment=environment)


def fetch(environment, source=NAME):
    """What `fetch` gives in a process of its own: a path, or the type and message of an error."""
    process = start(environment, source)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output.strip()


def vitseg(environment, *arguments, cwd=None):
    return run_vitseg(*arguments, environment=environment, cwd=cwd)


def leftovers(environment):
    """Files with contents in the cache, and parts of files."""
    home = Path(environment["HF_HOME"])
    return [path.name for path in home.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def assert_one_sentence(message, error_type, *parts):
    assert message.startswith(f"{error_type}: "), message
    assert "\n" not in message, message
    for part in parts:
        assert part in message, message


def test_downloaded_once_and_shared_with_the_hub(hub, environment):
    path = Path(fetch(environment))
    assert path.read_bytes() == WEIGHTS
    assert path.name == "model.safetensors" and "snapshots" in path.parts
    assert fetch(environment) == str(path)
    assert hub.count("GET") == 1
    # Offline, and without the server: the cache is enough. So it is for the Hub's own function.
    hub.files.clear()
    code = f"""
        from huggingface_hub import hf_hub_download
        print(hf_hub_download({REPO!r}, "model.safetensors"))
    """
    process = start(environment | {"HF_HUB_OFFLINE": "1"}, code=code)
    assert process.communicate(timeout=600)[0].strip() == str(path)
    assert fetch(environment | {"HF_HUB_OFFLINE": "1"}) == str(path)


def test_token_stays_with_the_hub(hub, environment):
    hub.files[FILE].on_other_host = True
    assert Path(fetch(environment | {"HF_TOKEN": "hf_secret"})).read_bytes() == WEIGHTS
    authorized = {
        request[1].startswith("/cdn/"): "authorization" in map(str.lower, request[2])
        for request in hub.requests
    }
    assert authorized == {False: True, True: False}


def test_slow_server(hub, environment):
    hub.files[FILE].pause = 0.2
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


@pytest.mark.parametrize("ranges", [True, False])
def test_connection_cut_once(hub, environment, ranges):
    hub.files[FILE] = HostedFile(WEIGHTS, cut_after=len(WEIGHTS) // 2, cuts=1, ranges=ranges)
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


@pytest.mark.parametrize("ranges", [True, False])
def test_next_process_resumes(hub, environment, ranges):
    """A process that dies leaves a part; the next one asks for the rest only, where the server lets it."""
    big = save(
        {"weight": np.arange(6 * 2**20, dtype=np.float32)}
    )  # 25 MB: the Hub's library writes 10 MB at a time
    hub.files[FILE] = HostedFile(big, cut_after=15 * 2**20, cuts=1, ranges=ranges)
    code = """
        import os, time
        time.sleep = lambda seconds: os._exit(9)  # the process dies instead of waiting for its next attempt
        from vitseg_zoo.weights.download import fetch
        import sys
        fetch(sys.argv[1])
    """
    assert start(environment, code=code).wait(timeout=600) == 9
    assert any(name.endswith(".incomplete") for name in leftovers(environment))
    hub.files[FILE].refusal, hub.files[FILE].refuses_contents_only = (503, ""), True
    assert_one_sentence(fetch(environment), "ConnectionError", NAME, "503", "try again later")
    hub.files[FILE].refusal = None
    hub.requests.clear()
    assert Path(fetch(environment)).read_bytes() == big
    # huggingface_hub before 1.0 asks once more where a server sends all of it.
    request, *_ = [headers for method, _, headers in hub.requests if method == "GET"]
    assert {key.lower(): value for key, value in request.items()}["range"] == f"bytes={10 * 2**20}-"


def test_connection_that_always_breaks(hub, environment):
    hub.files[FILE] = HostedFile(WEIGHTS, cut_after=1000)
    message = fetch(environment)
    assert_one_sentence(
        message, "ConnectionError", NAME, "run this again", f"vitseg download {NAME} --to DIR"
    )


@pytest.mark.parametrize(
    "hosted",
    [
        pytest.param(HostedFile(WEIGHTS[:-4000] + bytes(4000), announced=WEIGHTS), id="altered"),
        pytest.param(HostedFile(WEIGHTS[:9000], announced=WEIGHTS), id="truncated"),
        pytest.param(HostedFile(WEIGHTS, length=9000), id="length stated too small"),
        pytest.param(HostedFile(WEIGHTS + WEIGHTS, announced=WEIGHTS), id="too long"),
        pytest.param(HostedFile(b"<html>Log in to this network</html>" * 50), id="web page"),
        pytest.param(HostedFile(pickle.dumps({"weight": list(range(2000))})), id="pickle under a false name"),
        pytest.param(HostedFile(struct.pack("<Q", 200) + b"{broken" * 300), id="broken header"),
        pytest.param(HostedFile(struct.pack("<Q", 2**60) + bytes(2000)), id="header larger than any disk"),
        pytest.param(HostedFile(struct.pack("<Q", 200 * 2**20) + bytes(2000)), id="header of 200 MB"),
    ],
)
def test_wrong_file_is_deleted_and_named(hub, environment, hosted):
    hub.files[FILE] = hosted
    message = fetch(environment)
    assert_one_sentence(message, "OSError", "model.safetensors", "deleted")
    assert not leftovers(environment)
    # Nothing is left that would stand in the way of the right file.
    hub.files[FILE] = HostedFile(WEIGHTS)
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


def test_length_stated_too_large(hub, environment):
    hub.files[FILE].length = len(WEIGHTS) + 500
    assert_one_sentence(fetch(environment), "ConnectionError", NAME, "run this again")
    assert not leftovers(environment)


def test_file_altered_in_the_cache(hub, environment):
    path = Path(fetch(environment))
    blob = path.resolve()
    blob.write_bytes(WEIGHTS[:-4] + b"oops")
    assert_one_sentence(fetch(environment), "OSError", "altered", "deleted")
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


def test_two_processes_at_once(hub, environment):
    hub.files[FILE].pause = 0.3
    processes = [start(environment) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0].strip() for process in processes]
    assert outputs[0] == outputs[1]
    assert Path(outputs[0]).read_bytes() == WEIGHTS
    assert hub.count("GET") == 1


def test_missing(hub, environment):
    del hub.files[FILE]
    assert_one_sentence(fetch(environment), "FileNotFoundError", NAME, "404", "HF_TOKEN")
    hub.files[f"{REPO}/config.json"] = HostedFile(b"{}")
    assert_one_sentence(fetch(environment), "FileNotFoundError", REPO, "no model.safetensors", "404")


@pytest.mark.parametrize(
    ("refusal", "error_type", "parts"),
    [
        ((403, "GatedRepo"), "PermissionError", ["gives access on request", REPO, "HF_TOKEN"]),
        ((401, "GatedRepo"), "PermissionError", ["gives access on request", REPO, "HF_TOKEN"]),
        ((401, "RepoNotFound"), "FileNotFoundError", ["no such repository", "private", "HF_TOKEN"]),
        ((403, ""), "PermissionError", ["403", "HF_TOKEN"]),
        ((404, "RevisionNotFound"), "FileNotFoundError", ["no such revision", "404"]),
        ((500, ""), "ConnectionError", ["500", "try again later", "VITSEG_ZOO_WEIGHTS=DIR"]),
    ],
)
def test_refusals(hub, environment, refusal, error_type, parts):
    hub.files[FILE].refusal = refusal
    assert_one_sentence(fetch(environment), error_type, NAME, *parts)
    assert not leftovers(environment)


class Bomb:
    def __reduce__(self):
        return (exec, ("open('exploded', 'w')",))


def test_pickle_bomb(hub, environment, tmp_path):
    """Some repositories have a pickle alone; what it would run is not run."""
    torch.save({"weight": torch.zeros(9), "extra": Bomb()}, tmp_path / "bomb.bin")
    bomb = HostedFile((tmp_path / "bomb.bin").read_bytes())
    hub.files["nvidia/segformer-b4-finetuned-ade-512-512/pytorch_model.bin"] = bomb
    result = vitseg(environment, "convert", "segformer_b4.nv_ade20k_512", "out.safetensors", cwd=tmp_path)
    assert result.returncode == 1 and "pytorch_model.bin holds Python objects" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.bin", "home"]


def test_no_network(environment):
    with socket.socket() as unused:  # a port at which nobody answers
        unused.bind(("127.0.0.1", 0))
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = fetch(environment)
    assert_one_sentence(message, "ConnectionError", NAME, "vitseg download", "VITSEG_ZOO_WEIGHTS=DIR")


def test_offline(hub, environment):
    environment["HF_HUB_OFFLINE"] = "1"
    message = fetch(environment)
    assert_one_sentence(message, "ConnectionError", NAME, "HF_HUB_OFFLINE", "VITSEG_ZOO_WEIGHTS=DIR")
    message = fetch(environment, f"{hub.endpoint}/{FILE}")
    assert_one_sentence(message, "ConnectionError", FILE, "HF_HUB_OFFLINE", "pass its path")
    assert not hub.requests


def test_proxy(hub, environment):
    del environment["NO_PROXY"]
    environment |= {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.endpoint}
    assert Path(fetch(environment)).read_bytes() == WEIGHTS
    assert all(path.startswith("http://hub.invalid/") for _, path, _ in hub.requests)


def test_progress_bar(environment):
    del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    terminal, end = pty.openpty()  # shown to people alone
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # lines and columns
    command = [sys.executable, "-m", "vitseg_zoo.cli", "download", NAME]
    subprocess.run(command, env=environment, stderr=end, stdout=subprocess.DEVNULL, check=True, timeout=600)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as stream:
        while part := stream.read(1000):
            shown += part
    assert b"model.safetensors: 100%" in shown


def mount(folder, options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small or read-only file system needs root")


def test_full_disk(hub, environment, tmp_path):
    mount(tmp_path / "small", "size=64k")
    try:
        hub.files[FILE] = HostedFile(save({"weight": np.zeros(50000, np.float32)}))
        message = fetch(environment | {"HF_HOME": str(tmp_path / "small")})
        assert_one_sentence(message, "OSError", NAME, "full", "HF_HOME")
        result = vitseg(environment, "download", NAME, "--to", str(tmp_path / "small" / "stick"))
        assert "stick is full" in result.stderr and "choose another folder" in result.stderr
        # Where the size is known only when the disk is full already.
        message = fetch(environment | {"HF_HOME": str(tmp_path / "small")}, f"{hub.endpoint}/{FILE}")
        assert_one_sentence(message, "OSError", "full", "HF_HOME")
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_cache_that_cannot_be_written(hub, environment, tmp_path):
    mount(tmp_path / "fixed", "size=1m")
    try:
        environment["HF_HOME"] = str(tmp_path / "fixed")
        path = fetch(environment)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "fixed")], check=True)
        assert fetch(environment) == path
        hub.files["smp-hub/segformer-b1-512x512-ade-160k/model.safetensors"] = HostedFile(WEIGHTS + b"")
        message = fetch(environment, "segformer_b1.smp_ade20k_512")
        assert_one_sentence(message, "PermissionError", "segformer_b1", "HF_HOME", "VITSEG_ZOO_WEIGHTS=DIR")
    finally:
        subprocess.run(["umount", str(tmp_path / "fixed")], check=True)


def test_plain_addresses(hub, environment, tmp_path):
    hub.files["weights/model.safetensors"] = HostedFile(WEIGHTS)
    address = f"{hub.endpoint}/weights/model.safetensors"
    path = Path(fetch(environment, address))
    assert path.read_bytes() == WEIGHTS and path.name == "model.safetensors"
    hub.files.clear()
    assert fetch(environment, address) == str(path)
    assert_one_sentence(fetch(environment, f"{hub.endpoint}/other.pth"), "FileNotFoundError", "404")
    assert fetch(environment, path.as_uri()) == str(path)
    assert_one_sentence(fetch(environment, "http://example.org/model.pth"), "ValueError", "https:")
    assert_one_sentence(fetch(environment, str(tmp_path / "no.pth")), "FileNotFoundError", "no.pth")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("https:///x.pth", ["names no host"]), ("ftp://example.org/y.pth", ["https: or file:", "ftp:"])],
)
def test_addresses_that_are_refused(environment, address, parts):
    assert_one_sentence(fetch(environment, address), "ValueError", address, *parts)


def test_plain_address_that_breaks_leaves_nothing(hub, environment):
    """Without a checksum nothing would show that parts fit, so that none are kept."""
    hub.files["weights/model.safetensors"] = HostedFile(WEIGHTS, cut_after=1000)
    message = fetch(environment, f"{hub.endpoint}/weights/model.safetensors")
    assert_one_sentence(message, "ConnectionError", "run this again, or")
    assert "where it stopped" not in message
    assert "404" in fetch(environment, f"{hub.endpoint}/other.pth")
    assert not list(Path(environment["HF_HOME"]).rglob("*.incomplete"))


def test_carried_to_a_machine_without_network(hub, environment, tmp_path):
    result = vitseg(environment, "download", NAME, "--to", str(tmp_path / "stick"))
    assert result.returncode == 0, result.stderr
    assert "must not be used commercially" in result.stdout
    assert "VITSEG_ZOO_WEIGHTS" in result.stdout
    assert not leftovers(environment)
    file = tmp_path / "stick" / f"{NAME}.safetensors"
    assert subprocess.run(["sha256sum", "-c", f"{file.name}.sha256"], cwd=file.parent).returncode == 0

    alone = environment | {"HF_HUB_OFFLINE": "1", "VITSEG_ZOO_WEIGHTS": str(file.parent)}
    assert fetch(alone) == str(file)
    file.write_bytes(WEIGHTS[:-4] + b"oops")
    assert_one_sentence(fetch(alone), "OSError", str(file), "altered")
    assert file.exists()  # the user's own
    alone["VITSEG_ZOO_WEIGHTS"] = str(tmp_path / "absent")
    assert_one_sentence(fetch(alone), "FileNotFoundError", "VITSEG_ZOO_WEIGHTS", "absent")


BUILD = """
    import sys
    import timm, torch
    import segmentation_models_pytorch as smp
    try:
        for name in sys.argv[1].split():
            if name.startswith("vz-"):
                mean = smp.encoders.get_preprocessing_params(name)["mean"]
                model = smp.encoders.get_encoder(name, weights="imagenet").model
            else:
                model, mean = timm.create_model(name, pretrained=True), None
            print(model.state_dict()["stages.3.blocks.1.mlp.fc2.bias"][:3].tolist(), mean)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def build(environment, names):
    process = start(environment, names, BUILD)
    return process, *process.communicate(timeout=600)


def test_encoders_are_fetched_checked_and_carried_like_models(hub, environment, tmp_path):
    torch.manual_seed(0)
    timms = timm.create_model("mit_pvt_b0").state_dict()
    smps = segmentation_models_pytorch.encoders.get_encoder("mit_b0", weights=None).state_dict()
    hub.files["timm/pvt_v2_b0.in1k/model.safetensors"] = HostedFile(save_tensors(timms))
    hub.files["smp-hub/mit_b0.imagenet/model.safetensors"] = copied = HostedFile(save_tensors(smps))
    lines = [
        f"{smps['block4.1.mlp.fc2.bias'][:3].tolist()} [0.485, 0.456, 0.406]",
        f"{timms['stages.3.blocks.1.mlp.fc2.bias'][:3].tolist()} None",
    ]
    copied.announced = b"something else"
    _, output, _ = build(environment, "vz-mit_b0")
    assert_one_sentence(output.strip(), "OSError", "model.safetensors", "announced", "deleted")
    copied.announced = None

    first, second = (start(environment, "vz-mit_b0 mit_pvt_b0.in1k", BUILD) for _ in range(2))  # at once
    for process in (first, second):
        output, errors = process.communicate(timeout=600)
        assert output.splitlines() == lines
        assert [line for line in errors.splitlines() if "commercially" in line] == [
            f"mit_b0.imagenet: the weights must not be used commercially. License: {NVIDIA_LICENSE}."
        ]

    result = vitseg(environment, "download", "mit_b0.imagenet", "mit_pvt_b0", "--to", str(tmp_path / "stick"))
    assert result.returncode == 0, result.stderr
    hub.files.clear()
    alone = environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "other")}
    alone["VITSEG_ZOO_WEIGHTS"] = str(tmp_path / "stick")
    assert build(alone, "vz-mit_b0 mit_pvt_b0.in1k")[1].splitlines() == lines


def test_encoders_in_a_cache_that_cannot_be_written(hub, environment, tmp_path):
    weights = segmentation_models_pytorch.encoders.get_encoder("mit_b0", weights=None).state_dict()
    hub.files["smp-hub/mit_b0.imagenet/model.safetensors"] = HostedFile(save_tensors(weights))
    mount(tmp_path / "fixed", "size=32m")
    try:
        environment["HF_HOME"] = str(tmp_path / "fixed")
        expected = build(environment, "vz-mit_b0")[1]
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "fixed")], check=True)
        present, absent = build(environment, "vz-mit_b0 vz-mit_pvt_b0")[1].splitlines()
        assert present == expected.strip()
        assert_one_sentence(absent, "OSError", "mit_pvt_b0.in1k", "cannot be written", "HF_HOME")
    finally:
        subprocess.run(["umount", str(tmp_path / "fixed")], check=True)


def test_encoder_of_a_plain_vit(hub, environment):
    weights = timm.create_model("vit_tiny_patch16_224").state_dict()
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    hub.files[f"timm/{name}/model.safetensors"] = HostedFile(save_tensors(weights))
    code = """
        import segmentation_models_pytorch as smp
        unet = smp.Unet("vz-vit_tiny_patch16_224", encoder_weights="augreg_in21k_ft_in1k")
        vitseg = smp.VitSeg("vz-vit_tiny_patch16_224", encoder_weights="imagenet")
        for model in (unet, vitseg):
            print(model.encoder.model.blocks[0].attn.qkv.bias[:3].tolist())
        print(smp.encoders.get_preprocessing_params("vz-vit_tiny_patch16_224")["mean"])
    """
    output, errors = start(environment, code=code).communicate(timeout=600)
    value = str(weights["blocks.0.attn.qkv.bias"][:3].tolist())
    assert output.splitlines() == [value, value, "[0.5, 0.5, 0.5]"], errors
    assert hub.count("GET") == 1


FETCH_ALL = """
    import os, sys
    from vitseg_zoo.weights.download import fetch
    for source in sys.argv[1].split("\\n"):
        try:
            print(fetch(source))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""


def fetch_all(environment, *sources):
    """As `fetch`, of several sources in one process, with what was logged."""
    output, errors = start(environment, "\n".join(sources), FETCH_ALL).communicate(timeout=600)
    lines = output.splitlines()
    assert len(lines) == len(sources), output + errors
    return lines, errors


@pytest.mark.parametrize("name", ["thesis.txt", "../../../../thesis.txt"])
def test_a_path_for_an_etag_reaches_no_file_of_the_user(hub, environment, tmp_path, name):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    etag = str(thesis) if name == "thesis.txt" else name
    hub.files[FILE].etag = etag
    for _ in range(2):
        assert_one_sentence(fetch(environment), "ConnectionError", "HF_ENDPOINT", etag)
    hub.files[FILE] = HostedFile(WEIGHTS, commit="../../../../elsewhere")
    assert_one_sentence(fetch(environment), "ConnectionError", "HF_ENDPOINT", "elsewhere")
    assert thesis.read_text() == "years of work" and not list(Path(environment["HF_HOME"]).rglob("thesis*"))


def test_a_snapshot_that_links_to_a_file_of_the_user_s_deletes_nothing(hub, environment, tmp_path):
    path = Path(fetch(environment))
    own = tmp_path / "own.safetensors"
    own.write_bytes(WEIGHTS[:-4] + b"mine")
    path.unlink()
    path.symlink_to(own)
    assert_one_sentence(fetch(environment), "OSError", str(path), "altered", "replace it")
    assert own.exists() and path.is_symlink()


@pytest.mark.parametrize(
    "etag", [None, "d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427e-3"]
)
@pytest.mark.parametrize("copied", [False, True])
def test_a_flipped_byte_is_found_however_the_cache_holds_the_file(hub, environment, etag, copied, tmp_path):
    hub.files[FILE].etag = etag
    path = Path(fetch(environment))
    if copied:  # as `cp -rL`, docker and Windows do
        shutil.copytree(environment["HF_HOME"], tmp_path / "copy")
        environment["HF_HOME"] = str(tmp_path / "copy")
        path = tmp_path / "copy" / path.relative_to(tmp_path / "home")
    assert path.is_symlink() != copied and fetch(environment) == str(path)
    path.write_bytes(WEIGHTS[:-4] + b"oops")
    assert_one_sentence(fetch(environment), "OSError", "altered", "deleted")
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


def test_an_etag_in_upper_case_is_a_checksum(hub, environment):
    digest = hashlib.sha256(WEIGHTS).hexdigest().upper()
    hub.files[FILE] = HostedFile(WEIGHTS[:-4] + b"oops", etag=digest)
    assert_one_sentence(fetch(environment), "OSError", "altered", "deleted")
    hub.files[FILE] = HostedFile(WEIGHTS, etag=digest)
    assert Path(fetch(environment)).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda digest: digest.upper().encode(), id="upper case"),
        pytest.param(lambda digest: f"{digest}\tfile\r\n".encode(), id="tab"),
        pytest.param(lambda digest: f"{digest}  file".encode("utf-8-sig"), id="BOM"),
        pytest.param(lambda digest: f"{digest}  file\r\n".encode("utf-16"), id="UTF-16"),
        pytest.param(lambda digest: f"SHA256 (file) = {digest}".encode(), id="BSD"),
    ],
)
def test_checksums_as_other_programs_write_them(tmp_path, written):
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    (tmp_path / "x.sha256").write_bytes(written(digest))
    assert read_sha256(tmp_path / "x.sha256") == digest
    (tmp_path / "x.sha256").write_text("none")
    with pytest.raises(OSError, match=r"x.sha256 holds no SHA-256 of 64"):
        read_sha256(tmp_path / "x.sha256")


def test_https_is_not_left_for_http(hub, environment, tmp_path):
    certificate = tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {certificate} -out {tmp_path}/c.pem"
    command = [*command.split(), "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    if not shutil.which("openssl") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a certificate needs openssl")
    with certificate.open("a") as file:
        file.write((tmp_path / "c.pem").read_text())
    hub.files["weights/model.safetensors"] = HostedFile(WEIGHTS)
    plain = f"{hub.endpoint}/weights/model.safetensors"
    environment |= {key: str(tmp_path / "c.pem") for key in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
    with HubServer(certificate=str(certificate)) as secure:
        address = f"{secure.endpoint}/weights"
        secure.files["weights/model.safetensors"] = HostedFile(WEIGHTS)
        secure.files["weights/http.safetensors"] = HostedFile(b"", location=plain)
        secure.files["weights/twice.safetensors"] = HostedFile(b"", location="/weights/http.safetensors")
        secure.files["weights/https.safetensors"] = HostedFile(b"", location="/weights/model.safetensors")
        secure.files[FILE] = HostedFile(WEIGHTS, etag="0" * 32, location=f"{hub.endpoint}/cdn/{FILE}")
        names = [f"{address}/{name}.safetensors" for name in ("http", "twice", "https")]
        (once, twice, https), _ = fetch_all(environment | {"HF_ENDPOINT": secure.endpoint}, *names)
        mirrored = fetch(environment | {"HF_ENDPOINT": secure.endpoint})
    assert Path(https).read_bytes() == WEIGHTS
    for message in (once, twice, mirrored):
        assert_one_sentence(message, "ConnectionError", "redirects to", hub.endpoint, "not followed")
    assert not hub.requests


def test_passwords_of_addresses_are_sent_and_never_repeated(hub, environment):
    hub.files["weights/model.safetensors"] = HostedFile(WEIGHTS)
    hub.files["weights/cut.safetensors"] = HostedFile(WEIGHTS, cut_after=1000)
    hub.files["weights/failing.pth"] = HostedFile(WEIGHTS, refusal=(500, ""))
    hub.files["weights/wrong.safetensors"] = HostedFile(b"<html>" * 500)
    host = hub.endpoint.removeprefix("http://")
    names = ["cut.safetensors", "failing.pth", "wrong.safetensors", "absent.pth", "model.safetensors"]
    addresses = [f"http://me:s%40cret@{host}/weights/{name}" for name in names]
    addresses += ["http://me:s%40cret@example.org/x.pth", f"https://me:s%40cret@{host}:1/x.pth"]
    lines, logged = fetch_all(environment, *addresses)
    assert Path(lines[4]).read_bytes() == WEIGHTS
    assert "cret" not in "".join(lines) + logged
    sent = [{key.lower(): value for key, value in headers.items()} for _, _, headers in hub.requests]
    assert all(base64.b64decode(headers["authorization"][6:]) == b"me:s@cret" for headers in sent)
    environment["HF_ENDPOINT"] = f"http://me:secret@{host}"
    hub.files[FILE].etag = "?"
    assert "secret" not in fetch(environment)


def test_a_zip_that_would_fill_the_memory_is_not_inflated(hub, environment, tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        for _ in range(200):
            file.write(bytes(2**20))
    hub.files["weights/bomb.pth"] = HostedFile(path.read_bytes())
    message = fetch(environment, f"{hub.endpoint}/weights/bomb.pth")
    assert_one_sentence(message, "OSError", "bomb.pth", "would be inflated to 210 MB", "deleted")
    with pytest.raises(ValueError, match=r"bomb.pth has 0 MB and would be inflated to 210 MB: get it again"):
        read_checkpoint(path)


def test_odd_addresses_and_folders_where_files_should_be_are_named(hub, environment, tmp_path):
    addresses = ["https://example.org:99999/a.pth", "https://[::1/b.pth", f"https://{'x' * 70}.org/c.pth"]
    addresses += ["https://exa mple.org/d.pth", f"https://é{'x' * 70}.org/e.pth", f"{hub.endpoint}/.."]
    addresses += [tmp_path.as_uri(), f"{hub.endpoint}/{'n' * 300}.pth"]
    lines, errors = fetch_all(environment, *addresses)
    assert "Traceback" not in errors
    for line, address in zip(lines, addresses, strict=True):
        assert_one_sentence(line, line.partition(":")[0], address.removeprefix("file://"))
        assert line.partition(":")[0] in ("ValueError", "ConnectionError", "FileNotFoundError"), line
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blobs = Path(environment["HF_HOME"], "hub", f"models--{REPO.replace('/', '--')}", "blobs")
    (blobs / digest).mkdir(parents=True)
    assert_one_sentence(fetch(environment), "FileExistsError", digest, "is a folder where a file should be")
    (blobs / digest).rmdir()
    (blobs / f"{digest}.incomplete").mkdir()
    assert_one_sentence(
        fetch(environment), "IsADirectoryError", NAME, "Is a directory", f"{digest}.incomplete"
    )
    (tmp_path / "stick" / f"{NAME}.safetensors").mkdir(parents=True)
    result = vitseg(environment, "download", NAME, "--to", str(tmp_path / "stick"))
    assert (
        result.returncode == 1 and f"{NAME}.safetensors is a folder where a file should be" in result.stderr
    )


def test_a_file_larger_than_the_file_system_takes(hub, environment):
    code = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    """
    output, _ = start(environment, code=textwrap.dedent(code) + textwrap.dedent(FETCH)).communicate()
    assert_one_sentence(output.strip(), "OSError", NAME, "File too large", "HF_HOME")
