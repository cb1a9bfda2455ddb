"""Answers into Redis, one round trip a batch. Written to by the pipeline.

    emotion:ID               hash: the best answer so far, as JSON and in parts; expires
    trend:MINUTE:SOURCE      hash: posts per emotion, each post counted once; expires
    recent                   stream: the newest answers, capped
    emotions (channel)       every new answer, published once

A script decides post by post, atomically: an answer that is poorer than the one there (fewer modalities), or no
newer, changes nothing. That makes a redelivered post harmless: its record has the timestamp it had before.
"""

import datetime as dt
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.messages import Emotion, encode_emotion

RECENT_ANSWERS = 10_000
"""Length of the `recent` stream: minutes of a busy day; at about 600 bytes each, 6 MB."""

_REFUSED = -1

_STORE = """
local function fits(key, wanted)
  local found = redis.call('TYPE', key).ok
  return found == 'none' or found == wanted
end
if not fits(KEYS[1], 'hash') then return -1 end
if not (fits(KEYS[2], 'hash') and fits(KEYS[3], 'stream')) then
  return redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' or ' .. KEYS[3] .. ' belongs to somebody else; set a prefix')
end
local known = redis.call('HMGET', KEYS[1], 'richness', 'ingested_ms', 'emotion', 'trend')
if known[1] then
  local richer = tonumber(ARGV[1]) - tonumber(known[1])
  if richer < 0 or (richer == 0 and tonumber(ARGV[2]) <= tonumber(known[2])) then return 0 end
  if redis.call('EXISTS', known[4]) == 1 then redis.call('HINCRBY', known[4], known[3], -1) end
end
redis.call('HSET', KEYS[1], 'richness', ARGV[1], 'ingested_ms', ARGV[2], 'emotion', ARGV[3],
  'confidence', ARGV[4], 'revision', ARGV[5], 'answer', ARGV[6], 'trend', KEYS[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
redis.call('EXPIRE', KEYS[2], ARGV[7])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'answer', ARGV[6])
redis.call('PUBLISH', ARGV[9], ARGV[6])
return 1
"""


class RedisSink:
    """Keeps the best answer of each post, trends and the newest answers.

    Args:
        redis: The client; closed by `close`.
        prefix: Put before every key and before the channel.
        keep_s: Seconds that answers and trends live. One figure for both: a post that is delivered again must
            find itself counted for as long as its trend lives.
    """

    name = "redis"

    def __init__(self, redis: Redis, *, prefix: str = "", keep_s: int) -> None:
        self._redis = redis
        self._prefix = prefix
        self._keep_s = keep_s
        self._digest = ""

    async def write(self, answers: Sequence[Emotion]) -> None:
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

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()

    async def _store(self, answers: Sequence[Emotion]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for answer in answers:
            pipeline.evalsha(self._digest, 3, *self._keys(answer), *self._arguments(answer))
        for position, stored in enumerate(await pipeline.execute()):
            if stored == _REFUSED:
                raise RecordRefused(position, f"Redis: the key {self._keys(answers[position])[0]!r} is no hash")

    def _keys(self, answer: Emotion) -> tuple[str, str, str]:
        minute = answer.ingested_at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M")
        trend = f"{self._prefix}trend:{minute}:{answer.source or 'unknown'}"
        return f"{self._prefix}emotion:{answer.post_id}", trend, f"{self._prefix}recent"

    def _arguments(self, answer: Emotion) -> tuple[str | int | float | bytes, ...]:
        return (
            len(answer.modalities),
            round(answer.ingested_at.timestamp() * 1000),
            answer.emotion,
            answer.confidence,
            answer.revision,
            encode_emotion(answer),
            self._keep_s,
            RECENT_ANSWERS,
            f"{self._prefix}emotions",
        )
