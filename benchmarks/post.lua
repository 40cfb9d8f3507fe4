-- What wrk posts: each request names photos of one size, every time under a URL that nobody has asked for before.
--
--   wrk ... http://127.0.0.1:PORT/PATH -- PREFIX FILES [SHAPE] [URLS] [PACE_MS]
--
-- PREFIX   where the photos are, "http://127.0.0.1:8080/640/": 0.jpg, 1.jpg, ... to FILES - 1
-- SHAPE    url: {"url": ...} (the default); list: {"urls": [...]}; kserve: one URL as a tensor of bytes, in
--          the JSON of the KServe protocol, version 2
-- URLS     how many are in a list; 1 is the default
-- PACE_MS  each connection waits so long on average before a request; 0: it does not
--
-- The last line of output is JSON.

local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end

function init(args)
  prefix, files = args[1], tonumber(args[2])
  shape, urls, pace_ms = args[3] or "url", tonumber(args[4] or 1), tonumber(args[5] or 0)
  math.randomseed(os.time() * 100 + id)
  run = string.format("%d.%d.%d", id, os.time(), math.random(1e9))
  count = 0
  if pace_ms > 0 then
    -- wrk asks for this function before each request, if there is one.
    function delay()
      -- Arrivals at random; but servers close a connection that is idle for 5 s.
      return math.floor(math.min(4000, -pace_ms * math.log(1 - math.random())))
    end
  end
end

local function url()
  count = count + 1
  return string.format('"%s%d.jpg?n=%s.%d"', prefix, math.random(0, files - 1), run, count)
end

function request()
  local body
  if shape == "url" then
    body = '{"url": ' .. url() .. '}'
  elseif shape == "kserve" then
    body = '{"inputs": [{"name": "url", "shape": [1, 1], "datatype": "BYTES", "data": [' .. url() .. ']}]}'
  else
    local list = {}
    for i = 1, urls do list[i] = url() end
    body = '{"urls": [' .. table.concat(list, ", ") .. ']}'
  end
  return wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "duration_s": %.3f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
