from prefloop.data.conversations.conversation import conversation_text


def test_conversations_are_laid_out_under_role_labels() -> None:
    turns = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    )
    assert conversation_text(turns) == "[system]\nBe brief.\n\n[user]\nHi"
