-- Has a JitAccessRequest got what it asks for?
--   Healthy      open, or was open and is closed again as it should be, or was withdrawn
--   Suspended    waits for people or for a moment: approvals, notBefore, its turn, a policy that is suspended
--   Progressing  not looked at yet, waits for its policy, being opened or closed
--   Degraded     will never be open: denied, timed out, failed, void; or only people can mend it (Stalled); or it is
--                open and somebody's rule stops the packets
-- In a sync wave, Argo CD waits behind what is Suspended or Progressing and fails behind what is Degraded, but not in
-- the last wave: requests and their reviews belong there, together.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the controller has not looked at it yet"}
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local active, denied = conditions.Active, conditions.Denied
local stalled, succeeded = conditions.Stalled, conditions.Succeeded

if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.message}
end
if denied ~= nil and denied.status == "True" then
  return {status = "Degraded", message = denied.message}
end
-- Succeeded comes with the end.
if succeeded ~= nil then
  if succeeded.status == "True" or succeeded.reason == "Withdrawn" then
    return {status = "Healthy", message = succeeded.message}
  end
  return {status = "Degraded", message = succeeded.message}
end
if active == nil then
  return {status = "Progressing", message = "the controller has not looked at it yet"}
end
if active.status == "True" then
  return {status = "Healthy", message = active.message}
end
if active.reason == "GrantShadowed" then
  return {status = "Degraded", message = active.message}
end
local waits = {
  LimitReached = true,
  Scheduled = true,
  Suspended = true,
  WaitingForApproval = true,
}
-- While it closes, the reason is that of the end.
if waits[active.reason] and status.state ~= "Closing" then
  return {status = "Suspended", message = active.message}
end
return {status = "Progressing", message = active.message}
