"""Answers into Redis, one round trip a batch. Written to by the pipeline.

    emotion:ID               hash: the best answer so far, as JSON and in parts; expires
    half:ID                  hash: pooled vectors of its post and its clip, for a partner that comes late; expires soon
    trend:MINUTE:SOURCE      hash: posts per emotion, each post counted once; expires
    recent                   stream: the newest answers, capped
    emotions (channel)       every new answer, published once

A script decides post by post, atomically: an answer that lacks a modality of the one there, or has the same and is no
newer, changes nothing. That makes a redelivered record harmless: it has the timestamp it had before.
"""

import contextlib
import datetime as dt
import ssl
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError

from emostream.connectors.errors import AccessRefused, RecordRefused, SinkUnavailable
from emostream.connectors.messages import Emotion, decode_emotion, encode_emotion
from emostream.connectors.sinks import Answer, Known

RECENT_ANSWERS = 10_000
"""Length of the `recent` stream: minutes of a busy day; at about 600 bytes each, 6 MB."""

_REFUSED = -1

_TEXT, _VOICE = 1, 2
"""Modalities as bits, so that the script can say whether an answer has all that another has."""

_STORE = """
local function fits(key, wanted)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == wanted
end
if not (fits(KEYS[1], 'hash') and fits(KEYS[4], 'hash')) then return -1 end
if not (fits(KEYS[2], 'hash') and fits(KEYS[3], 'stream')) then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' or ' .. KEYS[3] .. ' belongs to somebody else; set a prefix')
end
local modalities, newest_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local known = redis.call('HMGET', KEYS[1], 'modalities', 'newest_ms', 'emotion', 'trend')
if known[1] then
  local had = tonumber(known[1])
  if not (had and tonumber(known[2]) and known[3] and known[4]) then return -1 end
  if bit.band(modalities, had) ~= had then return 0 end
  if modalities == had and newest_ms <= tonumber(known[2]) then return 0 end
  if redis.call('EXISTS', known[4]) == 1 then redis.call('HINCRBY', known[4], known[3], -1) end
end
redis.call('HSET', KEYS[1], 'modalities', ARGV[1], 'newest_ms', ARGV[2], 'emotion', ARGV[3],
  'confidence', ARGV[4], 'revision', ARGV[5], 'answer', ARGV[6], 'trend', KEYS[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
redis.call('EXPIRE', KEYS[2], ARGV[7])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'answer', ARGV[6])
redis.call('PUBLISH', ARGV[9], ARGV[6])
if redis.call('HGET', KEYS[4], 'model') ~= ARGV[10] then redis.call('DEL', KEYS[4]) end
redis.call('HSET', KEYS[4], 'model', ARGV[10])
redis.call('EXPIRE', KEYS[4], ARGV[11])
for i = 12, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i] .. '_ms', ARGV[i + 1])
  if ARGV[i + 2] ~= '' then redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 2]) end
end
return 1
"""


class RedisSink:
    """Keeps the best answer of each post, trends and the newest answers.

    Args:
        redis: The client; closed by `close`.
        prefix: Put before every key and before the channel.
        keep_s: Seconds that answers and trends live. One figure for both: a post that is delivered again must
            find itself counted for as long as its trend lives.
        late_s: Seconds that pooled vectors live: how late a partner may come and still be answered with the other.
        model: Name and version of the model; vectors of another are of no use.
    """

    name = "redis"

    def __init__(self, redis: Redis, *, prefix: str = "", keep_s: int, late_s: int = 600, model: str = "") -> None:
        self._redis = redis
        self._prefix = prefix
        self._keep_s = keep_s
        self._late_s = late_s
        self._model = model
        self._digest = ""

    async def open(self) -> None:
        """Find out whether Redis lets us in; one that is away is waited for by `write`.

        Raises:
            AccessRefused: Its certificate, or ours, or the user, the password or their rights will not do.
        """
        try:
            self._digest = await self._redis.script_load(_STORE)
        except (AuthenticationError, NoPermissionError) as error:
            raise AccessRefused(
                f"Redis refuses us ({error}); check EMOSTREAM_REDIS_USER and EMOSTREAM_REDIS_PASSWORD, or those in "
                "EMOSTREAM_REDIS, and what its ACL allows this user"
            ) from error
        except (RedisError, OSError) as error:
            if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                raise AccessRefused(
                    f"no TLS to Redis ({error}); check EMOSTREAM_REDIS and EMOSTREAM_REDIS_CA"
                ) from error

    async def write(self, answers: Sequence[Answer]) -> None:
        """Store answers in one round trip.

        Raises:
            SinkUnavailable: Redis is away, or refuses to write.
            RecordRefused: The key of an answer holds something of another type.
        """
        try:
            if not self._digest:
                self._digest = await self._redis.script_load(_STORE)
            try:
                await self._store(answers)
            except NoScriptError:  # Redis was restarted, or its scripts were flushed
                self._digest = await self._redis.script_load(_STORE)
                await self._store(answers)
        except (RedisError, OSError) as error:
            raise SinkUnavailable(f"Redis: {error}") from error

    async def look_up(self, post_ids: Sequence[str]) -> list[Known]:
        """Return what is known of each id, in one round trip.

        Raises:
            SinkUnavailable: Redis is away.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for post_id in post_ids:
            pipeline.hmget(f"{self._prefix}emotion:{post_id}", "answer", "post_ms", "clip_ms")
            pipeline.hmget(f"{self._prefix}half:{post_id}", "model", "post", "clip")
        try:
            found = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise SinkUnavailable(f"Redis: {error}") from error
        return [self._known(*pair) for pair in zip(found[::2], found[1::2], strict=True)]

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()

    def _known(self, answered: Any, halves: Any) -> Known:
        """Return what two hashes say; keys of other types or with other things in them say nothing.

        Raises:
            SinkUnavailable: Redis refused to say.
        """
        for reply in (answered, halves):
            if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
                raise SinkUnavailable(f"Redis: {reply}")
        answer, post_ms, clip_ms = answered if isinstance(answered, list) else (None, None, None)
        model, post, clip = halves if isinstance(halves, list) else (None, None, None)
        if model != self._model.encode():
            post = clip = None
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            return Known(
                emotion=decode_emotion(answer) if answer else None,
                post_ms=int(post_ms) if post_ms else None,
                clip_ms=int(clip_ms) if clip_ms else None,
                text_vector=post,
                voice_vector=clip,
            )
        return Known()

    async def _store(self, answers: Sequence[Answer]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for answer in answers:
            pipeline.evalsha(self._digest, 4, *self._keys(answer.emotion), *self._arguments(answer))
        for position, stored in enumerate(await pipeline.execute()):
            if stored == _REFUSED:
                key, *_, half = self._keys(answers[position].emotion)
                raise RecordRefused([position], f"Redis: the key {key!r} or {half!r} is no hash")

    def _keys(self, emotion: Emotion) -> tuple[str, str, str, str]:
        minute = emotion.ingested_at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M")
        trend = f"{self._prefix}trend:{minute}:{emotion.source or 'unknown'}"
        key, half = f"{self._prefix}emotion:{emotion.post_id}", f"{self._prefix}half:{emotion.post_id}"
        return key, trend, f"{self._prefix}recent", half

    def _arguments(self, answer: Answer) -> list[str | int | float | bytes]:
        emotion = answer.emotion
        halves: list[str | int | float | bytes] = []
        if answer.post_ms is not None:
            halves += ["post", answer.post_ms, answer.text_vector or b""]
        if answer.clip_ms is not None:
            halves += ["clip", answer.clip_ms, answer.voice_vector or b""]
        return [
            _TEXT * ("text" in emotion.modalities) + _VOICE * ("voice" in emotion.modalities),
            answer.newest_ms,
            emotion.emotion,
            emotion.confidence,
            emotion.revision,
            encode_emotion(emotion),
            self._keep_s,
            RECENT_ANSWERS,
            f"{self._prefix}emotions",
            self._model,
            self._late_s,
            *halves,
        ]
