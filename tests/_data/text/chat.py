"""A tokenizer for tests, with a chat template."""

ROLES = {"system": 1, "user": 2, "assistant": 3}
END, EOS = 4, 5


class Bytes:
    """A token is a byte and ten more; smaller ones are marks. A turn is role, content, END."""

    eos_token_id = EOS

    def encode(self, text):
        return [byte + 10 for byte in text.encode()]

    def apply_chat_template(self, messages, *, tokenize=True, add_generation_prompt=False, tools=None):
        tokens = self.encode(str(tools)) if tools else []
        for message in messages:
            tokens += [ROLES[message["role"]], *self.encode(message["content"]), END]
        return tokens + [ROLES["assistant"]] * add_generation_prompt

    def decode(self, tokens):
        return bytes(token - 10 for token in tokens if token >= 10).decode()


class Forgetful(Bytes):
    """Its template leaves out the answers before the last, as templates of some reasoning models do."""

    def apply_chat_template(self, messages, **options):
        last = len(messages) - 1
        kept = [m for n, m in enumerate(messages) if n == last or m["role"] != "assistant"]
        return super().apply_chat_template(kept, **options)


def learned(example):
    """Return the tokens with mask 1."""
    return [token for token, kept in zip(example.tokens, example.mask, strict=True) if kept]


def turn(role, content):
    """Return a message."""
    return {"role": role, "content": content}
