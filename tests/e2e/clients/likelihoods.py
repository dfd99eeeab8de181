"""The log-likelihoods that transformers gives in f32. Arguments: the model's directory; stdin: [[context, continuation]...]
as JSON; stdout: [[sum, greedy]...]. Needs torch and transformers."""
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tok = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
out = []
for context, continuation in json.load(sys.stdin):
    # as lm-eval cuts them: trailing blanks of the context belong to the continuation
    n = len(context) - len(context.rstrip())
    if n:
        context, continuation = context[:-n], context[-n:] + continuation
    whole, head = tok(context + continuation)["input_ids"], tok(context)["input_ids"]
    with torch.no_grad():
        lp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    ids = whole[len(head):]
    rows = lp[len(head) - 1:len(whole) - 1]
    out.append([float(sum(rows[i, t] for i, t in enumerate(ids))), bool((rows.argmax(-1) == torch.tensor(ids)).all())])
print(json.dumps(out))
