-- Record a job, index it and wake a worker, all at once; or find the job that already answers.
-- ARGV: prefix, id, tenant, ask, fresh ("1" asks anew), idem ("" none), fingerprint, queue limit,
--       retention s, tombstone s, queue, number of arrays, array keys..., field, value, ...
-- Answers {verdict, id}: created | known | replayed | conflict | full
local p, id, tenant, ask, fresh, idem, print = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local limit, keep, tomb, queue, count = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 13, 12 + count do redis.call('EXPIRE', ARGV[i], keep) end
if redis.call('EXISTS', p .. 'job:' .. id) == 1 then
  return {'created', id} -- sent twice, because the reply was lost
end

local idem_key = p .. 'idem:' .. tenant .. ':' .. idem
if idem ~= '' then
  local seen = redis.call('HMGET', idem_key, 'print', 'job')
  if seen[1] then
    if seen[1] ~= print then return {'conflict', seen[2]} end
    if redis.call('EXISTS', p .. 'job:' .. seen[2]) == 1 then return {'replayed', seen[2]} end
  end
end

local ask_key = p .. 'ask:' .. tenant .. ':' .. ask
if fresh ~= '1' then
  local known = redis.call('GET', ask_key)
  if known then
    local job = redis.call('HMGET', p .. 'job:' .. known, 'status', 'expires', 'cancel')
    local live = (job[1] == 'queued' or job[1] == 'running') and job[3] ~= '1'
    if live or (job[1] == 'succeeded' and tonumber(job[2]) > now) then
      if idem ~= '' then
        redis.call('HSET', idem_key, 'print', print, 'job', known)
        redis.call('EXPIRE', idem_key, keep)
      end
      return {'known', known}
    end
  end
end

if redis.call('ZCARD', p .. 'idx:queued') >= limit then return {'full', ''} end

local job = p .. 'job:' .. id
for i = 13 + count, #ARGV - 1, 2 do
  redis.call('HSET', job, ARGV[i], ARGV[i + 1])
end
redis.call('HSET', job, 'tenant', tenant, 'status', 'queued', 'created', now, 'attempt', 0, 'ask', ask,
  'keep', keep, 'tomb', tomb, 'queue', queue)
redis.call('ZADD', p .. 'idx:queued', now, id)
local mine = p .. 'idx:tenant:' .. tenant
redis.call('ZADD', mine, now, id)
redis.call('ZREMRANGEBYSCORE', mine, '-inf', now - (keep + tomb) * 1000)
redis.call('SET', ask_key, id, 'EX', keep)
if idem ~= '' then
  redis.call('HSET', idem_key, 'print', print, 'job', id)
  redis.call('EXPIRE', idem_key, keep)
end
redis.call('HINCRBY', p .. 'counters', 'submitted', 1)
redis.call('LPUSH', queue, redis.call('HGET', job, 'message'))
return {'created', id}
