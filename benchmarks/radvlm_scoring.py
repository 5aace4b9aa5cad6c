"""Scoring grounding answers and judging conversations: this project beside RadVLM's way.

python benchmarks/radvlm_scoring.py [--count 3000] [--rounds 3] [--latency 30]

Answers, dialogues and images are made up. The judge is a server in a process of its own, which
answers after some milliseconds (--latency).

* Grounding: RadVLM's own definitions, re-created here as a loop over answers, without intervals;
  ours are all scores of the task with intervals from 1,000 resamples, and RadVLM's two alone.
* Conversations: RadVLM's loop, re-created from its published script: one call after the other, the
  image decoded anew at each of nine accesses of a sample, the running mean written to a file after
  each. Ours is `python -m xraygpt.judge`, with its checks, ledger and scores. No model answers on
  either side: the answers are there.

Then our command is killed halfway and started again, and the server's requests are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BOX = re.compile(r"\[([\d.]+),\s*([\d.]+),\s*([\d.]+),\s*([\d.]+)\]")


# ---- The judge -----------------------------------------------------------------------------------


def serve(milliseconds: float) -> None:
    """Answer every request after some time; GET returns the number of requests so far."""
    count = [0]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(json.dumps(count[0]))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                count[0] += 1
            time.sleep(milliseconds / 1000)
            text = json.dumps({"score": 7, "reason": "Made up."})
            if "response_format" not in body:
                text = "Made up. Overall score: 7/10"
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 300, "completion_tokens": 15, "total_tokens": 315}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.reply(json.dumps({
                "id": "1", "object": "chat.completion", "created": 0, "model": "stub",
                "choices": [choice], "usage": usage,
            }))  # fmt: skip

        def reply(self, text: str) -> None:
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


# ---- What is scored ------------------------------------------------------------------------------


def made_up_boxes(rng: random.Random, count: int) -> list[list[float]]:
    """Return random boxes with two decimals."""
    boxes = []
    for _ in range(count):
        x, y = (sorted(rng.random() for _ in range(2)) for _ in range(2))
        boxes.append([round(v, 2) for v in (x[0], y[0], min(x[1] + 0.05, 1), min(y[1] + 0.05, 1))])
    return boxes


def answers(count: int) -> list[dict]:
    """Return grounding answers with up to two boxes, and their true boxes."""
    rng = random.Random(0)
    rows = []
    for i in range(count):
        truth, found = (made_up_boxes(rng, rng.randint(0, 2)) for _ in range(2))
        rows.append({"id": f"a{i}", "phrase": f"region {i % 29}", "boxes": truth,
                     "output": f"It is at {' and '.join(map(str, found))}."})  # fmt: skip
    return rows


def write_dialogues(folder: Path, count: int) -> None:
    """Write a result folder with dialogues of two answers, and their images."""
    import numpy as np
    from PIL import Image

    from xraygpt.evaluation import prediction_file, scoring
    from xraygpt.tasks.base import Prediction

    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
    for i in range(16):
        Image.fromarray(np.roll(pixels, i)).save(folder / f"images/{i}.jpg", quality=90)
    prediction_file.open_folder(folder, {"task": {"name": "conversation"}, "split": "test"})
    (folder / scoring.FITTED_STATE_FILE).write_text("{}")
    rows = [
        Prediction(
            f"d{i}/{k}", f"d{i}", "Q?", f"Answer {i} {k}.", f"Expected {i} {k}.", 0,
            {"dialogue": f"d{i}", "answer_number": k, "question": f"Question {k}?", "boxes": [],
             "source": "SYNTHETIC", "facts": {"report": f"Made-up report {i}."}},
        )
        for i in range(count) for k in (1, 2)
    ]  # fmt: skip
    prediction_file.write(folder / "predictions_true.jsonl", rows)


# ---- RadVLM's way --------------------------------------------------------------------------------


def radvlm_grounding(rows: list[dict]) -> float:
    """Mean average precision and average overlap by loops over pairs of boxes."""
    import numpy as np

    def iou(a: list[float], b: list[float]) -> float:
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(
            0, min(a[3], b[3]) - max(a[1], b[1])
        )
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return shared / (sum(areas) - shared)

    precisions, total, pairs = [], 0.0, 0
    for row in rows:
        found = [list(map(float, match)) for match in BOX.findall(row["output"])]
        truth = row["boxes"]
        if not found or not truth:
            precisions.append(0.0)
            continue
        overlap = np.zeros((len(found), len(truth)))
        for i, box in enumerate(found):
            for j, other in enumerate(truth):
                overlap[i, j] = iou(box, other)
        total, pairs = total + overlap.sum(), pairs + overlap.size
        taken, hits = set(), np.zeros(len(found))
        for i in range(len(found)):
            best = int(overlap[i].argmax())
            if overlap[i, best] >= 0.5 and best not in taken:
                hits[i] = 1
                taken.add(best)
        recall = np.concatenate(([0], np.cumsum(hits) / len(truth), [1]))
        precision = np.concatenate(([0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0]))
        for i in range(len(precision) - 1, 0, -1):
            precision[i - 1] = max(precision[i - 1], precision[i])
        steps = np.where(recall[1:] != recall[:-1])[0]
        precisions.append(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())
    return float(np.mean(precisions))


def radvlm_conversations(folder: Path, url: str, count: int) -> None:
    """Judge dialogues one after the other."""
    import numpy as np
    from PIL import Image

    scores: list[float] = []
    for i in range(count):
        for _ in range(9):  # each access of a sample decodes its image
            with Image.open(folder / f"images/{i % 16}.jpg") as image:
                image.convert("RGB").load()
        text = f"Radiology report: Made-up report {i}.\n" + "".join(
            f"User: Question {k}?\nExpected answer: Expected {i} {k}.\n"
            f"Generated answer: Answer {i} {k}.\n"
            for k in (1, 2)
        )
        body = {"model": "stub", "messages": [{"role": "user", "content": text}]}
        request = urllib.request.Request(
            f"{url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            reply = json.load(response)["choices"][0]["message"]["content"]
        scores += map(float, re.findall(r"(?i)overall\s*score.*?([\d.]+)/10", reply))
        (folder / "average_score.txt").write_text(str(np.mean(scores)))


# ---- Both sides ----------------------------------------------------------------------------------


def judge_command(folder: Path, url: str) -> list[str]:
    """Return our command."""
    return [
        sys.executable, "-m", "xraygpt.judge", "conversation", str(folder), "--provider", "local",
        "--base-url", url, "--model", "stub", "--concurrency", "16",
    ]  # fmt: skip


def requests_of(port: int) -> int:
    """Return the number of requests that the judge has had."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
        return int(json.load(response))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratios(name: str, ours: list[float], theirs: list[float]) -> None:
    """Print the median ratio of rounds, and its range."""
    each = [t / o for o, t in zip(ours, theirs, strict=True)]
    spread = f"{min(each):.2f} to {max(each):.2f} over {len(each)} rounds"
    print(f"{name}: {statistics.median(each):.2f} times as fast ({spread}; theirs / ours)")


def grounding(count: int, rounds: int) -> None:
    """Score made-up grounding answers on both sides."""
    import numpy as np

    from xraygpt.metrics import radvlm
    from xraygpt.tasks.base import Prediction
    from xraygpt.tasks.boxes import RegionGrounding

    rows = answers(count)
    predictions = [
        Prediction(
            row["id"], row["id"], "Where?", row["output"], "", 0,
            {"phrase": row["phrase"],
             "boxes": [{"label": row["phrase"], "box": box} for box in row["boxes"]]},
        )
        for row in rows
    ]  # fmt: skip
    task = RegionGrounding.Config(boxes="unit").build()
    truth = [np.array(row["boxes"]).reshape(-1, 4) for row in rows]
    texts = [row["output"] for row in rows]
    all_scores, same, theirs = [], [], []
    for _ in range(rounds):
        theirs.append(timed(lambda: radvlm_grounding(rows)))
        same.append(timed(lambda: radvlm.box_scores(texts, truth)))
        all_scores.append(timed(lambda: task.score(predictions)))
    ours = radvlm.box_scores(texts, truth)[0][0].value
    assert abs(radvlm_grounding(rows) - ours) < 1e-9
    print(f"{count} grounding answers: the same mAP ({ours:.4f})")
    ratios("  RadVLM's two scores, ours with intervals", same, theirs)
    ratios("  all scores of the task with intervals, against its two without", all_scores, theirs)


def conversations(count: int, rounds: int, latency: float) -> None:
    """Judge made-up dialogues on both sides, then kill ours and continue."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(latency)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    url = f"http://127.0.0.1:{port}/v1"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": REPO}
    try:
        ours, theirs = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "run"
                write_dialogues(folder, count)
                ours.append(timed(lambda f=folder: subprocess.run(judge_command(f, url), check=True,
                                                                  **quiet)))  # fmt: skip
                theirs.append(timed(lambda f=folder: radvlm_conversations(f, url, count)))
        print(f"{count} conversations, the judge answers after {latency:g} ms:")
        ratios("  judged and scored, from the start of the command", ours, theirs)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            write_dialogues(folder, count)
            before = requests_of(port)
            process = subprocess.Popen(judge_command(folder, url), **quiet)
            while requests_of(port) - before < count // 2:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            process.wait()
            at_kill = requests_of(port) - before
            subprocess.run(judge_command(folder, url), check=True, **quiet)
            total = requests_of(port) - before
            print(f"  killed after {at_kill} requests and continued: {total} requests for {count} "
                  f"dialogues ({total - count} had been asked when the process died)")  # fmt: skip
    finally:
        server.kill()


def main() -> None:
    """Time both sides alternately and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=30.0, help="milliseconds")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(REPO))
    grounding(args.count, args.rounds)
    conversations(args.count, args.rounds, args.latency)


if __name__ == "__main__":
    main()
