"""Makes the seeds of fuzz_endpoints: a good body of every shape, and one for each error. Run: python make_endpoints.py."""
import json
import os

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "endpoints")
chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}
score = {"model": "m", "text_1": "a", "text_2": ["b", "c"]}
embed = {"model": "m", "input": "a"}
bodies = {
    "tokenize": {"prompt": "a b", "add_special_tokens": False, "return_token_strs": True}, "tokenize_chat": dict(chat, add_generation_prompt=False, model="m"),
    "tokenize_both": dict(chat, prompt="a"), "tokenize_list": {"prompt": ["a"]}, "tokenize_flag": {"prompt": "a", "add_generation_prompt": True},
    "tokenize_word": {"prompt": "a", "add_special_tokens": "yes"}, "tokenize_template": dict(chat, chat_template="{{x}}"), "empty": {},
    "detokenize": {"tokens": [1, 2, 99]}, "detokenize_none": {"tokens": []}, "detokenize_high": {"tokens": [100]}, "detokenize_text": {"tokens": ["a"]},
    "detokenize_many": {"tokens": [1] * 9}, "detokenize_object": {"tokens": {"a": 1}},
    "embed": dict(embed, encoding_format="base64", dimensions=8, pooling="last", normalize=False, user="u"), "embed_ids": dict(embed, input=[[1], [2, 3]]),
    "embed_texts": dict(embed, input=["a", ""]), "embed_mixed": dict(embed, input=["a", 1]), "embed_pooling": dict(embed, pooling="cls"),
    "embed_encoding": dict(embed, encoding_format="hex"), "embed_dimensions": dict(embed, dimensions=9), "embed_zero": dict(embed, dimensions=0),
    "embed_no_model": {"input": "a"}, "embed_no_input": {"model": "m"}, "embed_unknown": dict(embed, x=1), "embed_known": dict(embed, truncate_prompt_tokens=1),
    "score": score, "score_pairs": dict(score, text_1=["a", "b"]), "score_uneven": dict(score, text_1=["a", "b"], text_2="c"), "score_number": dict(score, text_2=[1]),
    "score_none": dict(score, text_2=[]), "score_many": dict(score, text_2=["b"] * 3), "score_no_text": {"model": "m", "text_1": "a"},
}
os.makedirs(HERE, exist_ok=True)
for name, body in bodies.items():
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        json.dump(body, f)
