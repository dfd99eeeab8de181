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
schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
named = {"name": "n", "schema": schema, "strict": True, "description": "d"}
for name, form in {"text": {"type": "text"}, "object": {"type": "json_object"}, "schema": {"type": "json_schema", "json_schema": named}, "type": {"type": "xml"},
                   "no_type": {}, "list": [], "member": {"type": "text", "x": 1}, "name": {"type": "json_schema", "json_schema": dict(named, name="a b")},
                   "no_name": {"type": "json_schema", "json_schema": {"schema": {}}}, "no_schema": {"type": "json_schema", "json_schema": {"name": "n"}},
                   "schema_text": {"type": "json_schema", "json_schema": dict(named, schema="{}")}, "strict": {"type": "json_schema", "json_schema": dict(named, strict=2)},
                   "short": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}.items():
    bodies["x_format_" + name] = dict(base if len(name) % 2 else chat, response_format=form)
for name, form in {"json": {"json": schema}, "json_text": {"json": "{}"}, "regex": {"regex": "a+"}, "choice": {"choice": ["a", "b"]}, "choices": {"choice": ["a", "b", "c"]},
                   "choice_long": {"choice": ["x" * 30, "y" * 30]}, "choice_empty": {"choice": [""]}, "object": {"json_object": True}, "two": {"regex": "a", "choice": ["b"]},
                   "none": {"json": None}, "grammar": {"grammar": "root ::= x"}, "off": {"json_object": False, "disable_any_whitespace": False}, "list": []}.items():
    bodies["x_outputs_" + name] = dict(base if len(name) % 2 else chat, structured_outputs=form)
bodies |= {
    "x_two_forms": dict(base, response_format={"type": "json_object"}, structured_outputs={"regex": "a"}),
    "x_form_eos": dict(base, response_format={"type": "json_object"}, ignore_eos=True), "x_guided": dict(base, guided_json={}),
    "x_best_of": dict(base, best_of=3, n=2), "x_best_of_low": dict(base, best_of=1, n=2), "x_best_of_stream": dict(base, best_of=2, stream=True),
    "x_best_of_many": dict(base, best_of=128, prompt=["a", "b", "c"]), "x_prompt_logprobs": dict(base, prompt_logprobs=2, max_tokens=0),
    "x_prompt_logprobs_stream": dict(chat, prompt_logprobs=1, stream=True), "x_ids": dict(chat, return_token_ids=True, return_tokens_as_token_ids=True),
    "x_tool_choice": dict(chat, tool_choice="none"), "x_tool_choice_auto": dict(chat, tool_choice="auto"), "x_completion_tokens": dict(chat, max_completion_tokens=2, min_tokens=3),
}
for name, body in bodies.items():
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(body, f)
