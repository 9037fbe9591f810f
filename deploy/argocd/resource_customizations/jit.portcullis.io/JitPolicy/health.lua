-- Is the lock that a JitPolicy asks for in place?
--   Healthy      locked and read back; also in mode Audit, which locks nothing
--   Degraded     only people can mend it (Stalled), or somebody's rule lets traffic in past the lock
--   Progressing  not looked at yet, being written, or the cloud does not answer
-- Never Suspended, spec.suspend or not: Argo CD starts no later wave behind what is suspended, and so would hold up
-- the commit that ends the suspension.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the controller has not looked at it yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, effective, stalled = conditions.Ready, conditions.LockdownEffective, conditions.Stalled

if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
end
if ready == nil then
  return {status = "Progressing", message = "the controller has not looked at it yet"}
end
if ready.status == "True" then
  if obj.spec.suspend then
    return {status = "Healthy", message = "suspended, grants nothing: " .. ready.message}
  end
  return {status = "Healthy", message = ready.message}
end
if effective ~= nil and effective.status == "False" and effective.reason == "Shadowed" then
  return {status = "Degraded", message = effective.message}
end
return {status = "Progressing", message = ready.message}
