"""Makes the seeds of fuzz_request named x_*: a body for each error the older seeds do not reach. Run: python make_request.py."""
import json
import os

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "request")
base = {"model": "m", "prompt": "p"}
chat = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
bodies = {
    "x_model": {"model": 1, "prompt": "p"}, "x_long_model": dict(base, model="m" * 600), "x_no_prompt": {"model": "m"}, "x_no_messages": {"model": "m", "n": 2},
    "x_zero_tokens": dict(base, max_tokens=0), "x_ranges": dict(base, temperature=3), "x_text_number": dict(base, top_p="1"),
    "x_choices": dict(base, n=100, prompt=["a", "b", "c"]), "x_bias_many": dict(base, logit_bias={str(i): 1 for i in range(9)}),
    "x_bias_key": dict(base, logit_bias={"01": 1}), "x_bias_empty": dict(base, logit_bias={"": 1}), "x_bias_text": dict(base, logit_bias=[1]),
    "x_user": dict(base, user="u" * 600), "x_stream_options": dict(base, stream=True, stream_options=3),
    "x_stream_member": dict(base, stream=True, stream_options={"include_usage": True, "x": 1, "y": None}),
    "x_ids_many": dict(base, prompt=[1, 2, 3, 4, 5, 6]), "x_id_high": dict(base, prompt=[5000000000]), "x_id_text": dict(base, prompt=[1, "a"]),
    "x_prompts": dict(base, prompt=[[1], [2], [3]]), "x_many_values": dict(base, prompt=list(range(60))), "x_stops": dict(base, stop=["a", "b", "c"]),
    "x_stop_long": dict(base, stop="123456789"), "x_messages_many": dict(chat, messages=chat["messages"] * 5), "x_logprobs": dict(base, logprobs=4),
    "x_defaults": {"temperature": 0.5, "stop": ["x"], "logit_bias": {"1": 1}, "max_tokens": 2, "seed": 3},
    "x_min_above_max": {"min_tokens": 50, "max_tokens": 60}, "x_bool": dict(base, stream=1), "x_bodies": "x" * 5000,
}
for name, body in bodies.items():
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(body, f)
