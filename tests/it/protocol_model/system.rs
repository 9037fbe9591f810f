//! What happens in a step: to the API server, the lease, the cloud, and in each replica.

use super::*;

impl System {
    pub(super) fn pass(&mut self, fault: Fault) {
        self.step += 1;
        self.land();
        match fault {
            Fault::Crash(replica) => self.replicas[replica] = Replica::new(replica, self.step),
            Fault::Sleep(replica) => self.replicas[replica].sleeps = SLEEP,
            Fault::CutOff(replica) => self.replicas[replica].cut_off = SLEEP,
            Fault::ApiAway => self.replicas.iter_mut().for_each(|replica| replica.cut_off = SLEEP),
            Fault::Delete => self.delete(),
            Fault::Nothing | Fault::Late | Fault::LateCrash(_) | Fault::LateSleep(_) | Fault::OtherOrder => {}
        }
        let late = matches!(fault, Fault::Late | Fault::LateCrash(_) | Fault::LateSleep(_));
        let order = if fault == Fault::OtherOrder { [1, 0] } else { [0, 1] };
        for number in order {
            if self.replicas[number].sleeps == 0 {
                self.act(number, late);
            }
        }
        match fault {
            Fault::LateCrash(replica) => self.replicas[replica] = Replica::new(replica, self.step),
            Fault::LateSleep(replica) => self.replicas[replica].sleeps = SLEEP,
            _ => {}
        }
        for replica in &mut self.replicas {
            replica.sleeps = replica.sleeps.saturating_sub(1);
            replica.cut_off = replica.cut_off.saturating_sub(1);
        }
        let awake = self.replicas.iter().any(|replica| replica.sleeps == 0);
        self.awake = self.awake.filter(|_| awake).or(awake.then_some(self.step));
        self.judge();
    }

    fn land(&mut self) {
        let (landed, flying) =
            std::mem::take(&mut self.flights).into_iter().partition(|flight| flight.lands <= self.step);
        self.flights = flying;
        let landed: Vec<Flight> = landed;
        for flight in landed {
            self.standing.insert(flight.name, self.step);
        }
    }

    fn delete(&mut self) {
        let mut request = self.requests[0].get();
        request.metadata.deletion_timestamp.get_or_insert(Time(at(self.step)));
        self.requests[0] = Object::new(&request);
    }

    /// One replica does what is due.
    fn act(&mut self, number: usize, late: bool) {
        if self.replicas[number].cut_off == 0 {
            self.keep_lease(number);
        }
        let role = self.role(number);
        for index in 0..self.requests.len() {
            if self.replicas[number].cut_off == 0 {
                self.hear(number, index);
                if role == Role::Holder {
                    self.reconcile(number, index);
                }
            }
        }
        // What is written is read back, told, and gone on from.
        for _ in 0..2 {
            self.round(number, late);
            if self.replicas[number].cut_off == 0 && role == Role::Holder {
                for index in 0..self.requests.len() {
                    self.reconcile(number, index);
                }
            }
        }
        self.sweep(number);
    }

    fn now(&self, number: usize) -> Duration {
        moment(self.step, self.replicas[number].born)
    }

    fn role(&self, number: usize) -> Role {
        self.replicas[number].knowledge.role(self.now(number))
    }

    fn keep_lease(&mut self, number: usize) {
        let now = self.now(number);
        let record = |(holder, version, term): (usize, u32, u32)| Record {
            holder: Some(format!("replica-{holder}")),
            duration: Times::default().duration,
            version: version.to_string(),
            term: term.to_string(),
        };
        let seen = self.lease.map(record);
        let replica = &mut self.replicas[number];
        replica.knowledge.saw(seen, now);
        if replica.knowledge.next(now) != Next::Wait {
            let taken = match self.lease {
                Some((holder, version, term)) => (number, version + 1, term + u32::from(holder != number)),
                None => (number, 0, 0),
            };
            replica.knowledge.wrote(record(taken), now);
            self.lease = Some(taken);
        }
    }

    /// What a status says is told to the gate.
    fn hear(&mut self, number: usize, index: usize) {
        let now = at(self.step);
        let holder = self.role(number) == Role::Holder;
        let request = self.requests[index].get();
        let elapsed = self.now(number);
        let replica = &mut self.replicas[number];
        if state(&request) == State::Closing || state(&request).is_last() {
            replica.vouched.remove(&index);
        }
        if !holder {
            for (_, name) in gone(&request) {
                replica.known.remove(&name);
            }
        }
        let vouched = replica.vouched.contains(&index);
        let tenure = replica.knowledge.tenure().filter(|_| holder);
        let tenure = tenure.map(|begun| Tenure { begun, lasted: elapsed.saturating_sub(begun) });
        let landing = tenure
            .map(|tenure| may_land(&request, replica.granted.get(&index).copied(), tenure, UNFINISHED, now));
        for (_, grant) in duties(&request) {
            if matches!(grant.duty, Duty::Open { .. }) && !vouched {
                continue;
            }
            let closes = matches!(grant.duty, Duty::Close { .. });
            let known = replica.known.entry(grant.name.clone()).or_insert_with(|| Known {
                request: index,
                duty: grant.duty.taken_on(now),
                deadline: grant.deadline,
                closing: closes.then_some(now),
                lands: None,
                seen: Sight::Nothing,
            });
            known.deadline = known.deadline.min(grant.deadline);
            if closes && known.closing.is_none() {
                (known.duty, known.closing) = (Duty::Close { sent: false }, Some(now));
            }
        }
        for (_, name, left) in landing.unwrap_or_default() {
            let until = now + SignedDuration::try_from(left).unwrap();
            if let Some(known) =
                replica.known.get_mut(&name).filter(|known| until > known.lands.unwrap_or(now))
            {
                (known.lands, known.seen) = (Some(until), Sight::Nothing);
            }
        }
        // Gone, or over: nothing of it may stand.
        if state(&request).is_last() {
            for known in
                replica.known.values_mut().filter(|known| known.request == index && known.closing.is_none())
            {
                (known.duty, known.closing) = (Duty::Close { sent: false }, Some(now));
            }
        }
    }

    /// The holder moves a request as far as it goes.
    fn reconcile(&mut self, number: usize, index: usize) {
        let (cluster, now) = (Cluster::new("test", &[]), at(self.step));
        let judgement = Judgement::Allowed(Box::new(plan_of(index)));
        let (tally, admission) = (Tally::default(), Admission::InForce { since: Timestamp::MIN });
        for _ in 0..6 {
            self.hear(number, index);
            let mut request = self.requests[index].get();
            let replica = &self.replicas[number];
            let seen = |rule: &RuleStatus| match replica.known.get(&rule.name).map(|known| known.seen) {
                None | Some(Sight::Nothing) => Seen::Nothing,
                Some(Sight::Present(at)) => Seen::Present { at, priority: 100, shadowed_by: None },
                Some(Sight::Absent(at, by_us)) => Seen::Absent { at, by_us },
                Some(Sight::Lost(at)) => Seen::Lost { at },
            };
            let own = replica.vouched.contains(&index);
            let world = |ground| World {
                request: &request,
                judgement: &judgement,
                tally: &tally,
                admission: &admission,
                cluster: &cluster,
                seen: &seen,
                no_room: None,
                patience: Patience::default(),
                stopped_by: None,
                ground,
            };
            let mut next = step(&world(if own { Ground::Own } else { Ground::Found }), now);
            if next.grants && !own {
                next = step(&world(Ground::Asked), now);
            }
            let (before, grants) = (request.clone(), next.grants);
            match next.finalizer {
                Finalizer::Leave => request.status = Some(next.status),
                Finalizer::Add => {
                    request.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
                }
                Finalizer::Remove => {
                    if let Some(name) = self.may_stand(&before) {
                        self.wrong = Some(name);
                    }
                    request.metadata.finalizers = None;
                }
            }
            if grants && !state(&before).holds_rules() {
                let replica = &mut self.replicas[number];
                let tenure = replica.knowledge.tenure();
                replica.granted.extend(tenure.map(|begun| (index, begun)));
            }
            if grants {
                self.replicas[number].vouched.insert(index);
            }
            let changed = Object::new(&request) != Object::new(&before);
            self.requests[index] = Object::new(&request);
            if !changed {
                break;
            }
        }
        self.hear(number, index);
    }

    /// What must not be when a request is let go.
    fn may_stand(&self, request: &JitAccessRequest) -> Option<&'static str> {
        let rules = request.status.iter().flat_map(|status| &status.rules);
        let lives = |rule: &RuleStatus| {
            self.standing.contains_key(&rule.name)
                || self.flights.iter().any(|flight| flight.name == rule.name)
        };
        rules
            .into_iter()
            .any(lives)
            .then_some("a request was let go, and an allow of it stands, or a write of one is under way")
    }

    /// The gate of a replica works once.
    fn round(&mut self, number: usize, late: bool) {
        let (now, role) = (at(self.step), self.role(number));
        let grace = if role == Role::Standby {
            SignedDuration::try_from(GRACE).unwrap()
        } else {
            SignedDuration::ZERO
        };
        let due_by = now - grace;
        let mut known = self.replicas[number].known.clone();
        for one in known.values_mut().filter(|one| one.closing.is_none() && one.deadline <= due_by) {
            (one.duty, one.closing) = (Duty::Close { sent: false }, Some(one.deadline));
        }
        for (name, one) in &mut known {
            let again = one.lands.is_some() && one.duty == (Duty::Close { sent: true });
            if (one.duty == (Duty::Close { sent: false }) || again)
                && one.closing.is_some_and(|since| since <= due_by)
            {
                self.standing.remove(name);
                if !self.flights.iter().any(|flight| flight.name == *name) {
                    self.removed.insert(name.clone());
                }
                one.duty = Duty::Close { sent: true };
                one.lands = one.lands.filter(|until| *until > now);
            }
        }
        if role != Role::Standby {
            self.plan_and_write(number, late, &mut known);
        }
        self.replicas[number].known = known;
    }

    /// Reads the group, plans what is wanted there, and writes what the lease lets it.
    fn plan_and_write(&mut self, number: usize, late: bool, known: &mut BTreeMap<String, Known>) {
        let now = at(self.step);
        let grants: Vec<Grant> = known.iter().filter_map(|(name, one)| self.grant(name, one)).collect();
        let mut observed = nsg(&[]);
        for (place, name) in self.standing.keys().enumerate() {
            let grant = grants.iter().find(|grant| grant.name == *name);
            let grant = grant.cloned().or_else(|| self.of_status(name));
            if let Some(grant) = grant {
                let priority = 100 + u16::try_from(place).unwrap();
                observed.rules.push(grant_rule(&Cluster::new("test", &[]), &grant, priority));
            }
        }
        let wanted = portcullis::plan::desired::Wanted {
            cluster: Cluster::new("test", &[]),
            ..wanted(Vec::new(), grants.clone())
        };
        let changes = changes::plan(&observed, &wanted, &LIMITS, now);
        for name in &changes.lost {
            if let Some(one) = known.get_mut(name) {
                one.seen = Sight::Lost(now);
            }
        }
        let fenced = !self.replicas[number].knowledge.outlasts(WRITE_ANSWER, self.now(number));
        for rule in changes.opens.iter().filter(|_| !fenced) {
            let in_time = grants.iter().any(|grant| {
                grant.name == rule.name && grant.may_be_opened(now, FirewallKind::NetworkSecurityGroup)
            });
            if !in_time {
                continue;
            }
            self.begin(number, &rule.name);
            if late {
                self.flights.push(Flight { name: rule.name.clone(), lands: self.step + LATE });
                self.flights.sort();
                if let Some(one) = known.get_mut(&rule.name) {
                    one.lands = Some(now + SignedDuration::try_from(UNFINISHED).unwrap());
                }
            } else {
                self.standing.insert(rule.name.clone(), self.step);
            }
        }
        for (name, one) in known.iter_mut() {
            let stands = self.standing.contains_key(name);
            match one.duty {
                Duty::Open { .. } | Duty::Hold if stands => {
                    (one.duty, one.seen) = (Duty::Hold, Sight::Present(now));
                }
                Duty::Close { sent: true } if !stands && one.lands.is_none() => {
                    one.seen = Sight::Absent(now, true);
                }
                _ => {}
            }
        }
    }

    /// An allow is about to be sent.
    fn begin(&mut self, number: usize, name: &str) {
        if self.removed.contains(name) {
            self.wrong = Some("a name was used again");
        }
        let another = (0..self.replicas.len()).any(|other| {
            other != number && self.replicas[other].knowledge.outlasts(Duration::ZERO, self.now(other))
        });
        if another {
            self.wrong = Some("two replicas hold the lease");
        }
    }

    fn grant(&self, name: &str, known: &Known) -> Option<Grant> {
        let grant =
            duties_of(&self.requests[known.request].get()).into_iter().find(|grant| grant.name == name);
        let grant = grant.or_else(|| self.of_status(name))?;
        Some(Grant { duty: known.duty, deadline: known.deadline, ..grant })
    }

    /// A rule as the status of its request says it, whatever its state.
    fn of_status(&self, name: &str) -> Option<Grant> {
        self.requests.iter().find_map(|object| {
            let mut request = object.get();
            let status = request.status.as_mut()?;
            status.state = Some(State::Closing.as_str().into());
            status.rules.iter_mut().for_each(|rule| rule.state = "Closing".into());
            duties_of(&request).into_iter().find(|grant| grant.name == name)
        })
    }

    /// What no live request names is nobody's; what is overdue by its own name is closed by all.
    fn sweep(&mut self, number: usize) {
        let (now, role) = (at(self.step), self.role(number));
        let live: BTreeSet<String> = self
            .requests
            .iter()
            .map(Object::get)
            .filter(|request| state(request).holds_rules())
            .flat_map(|request| duties_of(&request))
            .map(|grant| grant.name)
            .collect();
        let judges = role == Role::Holder && self.replicas[number].cut_off == 0;
        let grace = if role == Role::Standby {
            SignedDuration::try_from(GRACE).unwrap()
        } else {
            SignedDuration::ZERO
        };
        let overdue = |name: &String| self.of_status(name).is_none_or(|grant| grant.deadline <= now - grace);
        let names: Vec<String> = self
            .standing
            .keys()
            .filter(|name| overdue(name) || (judges && !live.contains(*name)))
            .cloned()
            .collect();
        for name in names {
            self.standing.remove(&name);
        }
    }

    /// No allow stands for longer than it may.
    fn judge(&mut self) {
        for (name, since) in &self.standing {
            let Some(grant) = self.of_status(name) else {
                self.wrong = Some("an allow stands that no status names");
                continue;
            };
            // Written ahead: else nobody would know of it.
            let deadline = (grant.deadline.duration_since(start()).as_secs() / STEP) as u8;
            let Some(awake) = self.awake else { continue };
            let by = deadline.max(*since).max(awake);
            if i64::from(self.step.saturating_sub(by)) * STEP > BOUND {
                self.wrong = Some("an allow stands for too long");
            }
        }
    }
}

fn duties_of(request: &JitAccessRequest) -> Vec<Grant> {
    // Of the two groups of the plan, one is enough.
    duties(request).into_iter().map(|(_, grant)| grant).collect()
}

fn plan_of(index: usize) -> portcullis::plan::authorize::GrantPlan {
    let mut plan = plan(LIFE + 10 * index as u64);
    plan.rules.truncate(1);
    plan
}
