"""lm-eval's local-completions on a local multiple-choice task, each log-likelihood beside transformers' in f32.
Arguments: the URL, the model's directory (for the tokenizer), a Python that has torch and transformers (or not)."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

url, model, oracle = sys.argv[1:4]
QUESTIONS = [
    ("The capital of France is", ["Paris", "Rome", "a river"], 0),
    ("Water is made of hydrogen and", ["oxygen", "iron", "sand"], 0),
    ("Two plus two is", ["seven", "four", "nine hundred"], 1),
    ("The opposite of hot is", ["warm soup", "tall", "cold"], 2),
    ("A triangle has three", ["sides", "wheels", "moons"], 0),
    ("The sun rises in the", ["east", "cellar", "north"], 0),
    ("Bees make", ["honey", "cheese", "steel"], 0),
    ("A year has twelve", ["weeks", "months", "hours"], 1),
    ("Größe heißt auf Englisch", ["size", "shoe", "naïve — “quoted”"], 0),
    ("def add(a, b):\n    return", ["a + b", "print", "None of these,\n\tthank you"], 0),
]

with tempfile.TemporaryDirectory() as d:
    d = Path(d)
    (d / "questions.jsonl").write_text("".join(json.dumps({"q": q, "choices": c, "gold": g}) + "\n" for q, c, g in QUESTIONS))
    (d / "local_choices.yaml").write_text(f"""task: local_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {d}/questions.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
metric_list:
  - metric: acc
metadata:
  version: 1
""")
    runs = {}
    for backend, tokenizer in (("huggingface", f"tokenizer={model},"), ("remote", "")):  # remote: /tokenizer_info, /tokenize
        r = subprocess.run([str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "local-completions", "--model_args",
                            f"model=base,base_url={url}/v1/completions,{tokenizer}tokenizer_backend={backend},num_concurrent=4,max_retries=1",
                            "--include_path", str(d), "--tasks", "local_choices", "--log_samples", "--output_path", str(d / backend)],
                           capture_output=True, text=True, timeout=900)
        samples = list((d / backend).rglob("samples_*.jsonl"))
        assert r.returncode == 0 and samples, r.stdout[-1500:] + r.stderr[-2500:]
        runs[backend] = sorted((json.loads(line) for line in samples[0].read_text().splitlines()), key=lambda x: x["doc_id"])
        print(next(line for line in r.stdout.splitlines() if "|acc" in line.replace(" ", "")))

rows = runs["huggingface"]
assert [x["filtered_resps"] for x in rows] == [x["filtered_resps"] for x in runs["remote"]], "the remote tokenizer gives others"
pairs, got = [], []
for row in rows:
    for a, resp in zip(sorted(row["arguments"].items()), row["filtered_resps"]):
        pairs.append([a[1]["arg_0"], a[1]["arg_1"]])
        got.append([float(resp[0]), str(resp[1]) == "True"])
assert len(pairs) == 3 * len(QUESTIONS)
r = subprocess.run([oracle, str(Path(__file__).with_name("likelihoods.py")), model], input=json.dumps(pairs), capture_output=True, text=True)
if r.returncode:
    print("without transformers, the log-likelihoods were not compared:", r.stderr.strip().splitlines()[-1][:120])
    sys.exit(0)
want = json.loads(r.stdout)
worst = max(abs(a[0] - b[0]) for a, b in zip(got, want))
assert worst < 2e-3 and [a[1] for a in got] == [b[1] for b in want], (worst, list(zip(pairs, got, want)))
print(f"{len(pairs)} log-likelihoods within {worst:.1e} of transformers', greedy flags equal")
