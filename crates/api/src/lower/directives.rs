//! InferenceObjectives and InferenceModelRewrites to what they say of each pool, and their own
//! statuses.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use forebay_model::ObjectName;
use forebay_model::pool::{RewriteRule, RewriteTarget};
use forebay_model::snapshot::Problem;

use super::Notes;
use crate::index::objects::{Objects, TwoGroups};
use crate::kinds::Meta;
use crate::kinds::inference::{InferenceModelRewrite, InferenceObjective, ModelRule, PoolRef};
use crate::object::Kind;
use crate::reason;
use crate::status::{Condition, Fault, ObjectStatus};

/// The kinds whose statuses are made here.
pub(crate) const KINDS: [Kind; 4] = [
    Kind::InferenceObjective,
    Kind::LegacyInferenceObjective,
    Kind::InferenceModelRewrite,
    Kind::LegacyInferenceModelRewrite,
];

/// What objectives and rewrites say, by pool.
#[derive(Debug, Default)]
pub(crate) struct Directives {
    pub(crate) pools: HashMap<ObjectName, Directive>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) statuses: Vec<ObjectStatus>,
}

/// What they say of one pool.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Directive {
    pub(crate) objectives: BTreeMap<Arc<str>, i32>,
    /// In order of precedence.
    pub(crate) rewrites: Vec<RewriteRule>,
}

/// Exact before generic, then oldest, then by name, then in the order written.
type Rank<'a> = (bool, (bool, &'a str), &'a ObjectName, usize);

/// Lowers every objective and rewrite.
pub(crate) fn lower(objects: &Objects) -> Directives {
    let mut lowering = Lowering {
        objects,
        notes: Notes::default(),
        directives: Directives::default(),
    };
    let kinds = (Kind::InferenceObjective, Kind::LegacyInferenceObjective);
    for (name, objective) in lowering.effective(&objects.objectives, kinds, of_objective) {
        let pool = pool_of(name, &objective.spec.pool_ref);
        let own = lowering.directives.pools.entry(pool).or_default();
        own.objectives
            .insert(Arc::clone(&name.name), objective.spec.priority);
    }
    let kinds = (
        Kind::InferenceModelRewrite,
        Kind::LegacyInferenceModelRewrite,
    );
    let mut ranked: BTreeMap<(ObjectName, Rank<'_>), RewriteRule> = BTreeMap::new();
    for (name, rewrite) in lowering.effective(&objects.rewrites, kinds, of_rewrite) {
        let pool = pool_of(name, &rewrite.spec.pool_ref);
        for (at, rule) in rewrite.spec.rules.iter().enumerate() {
            let rank = (rule.matches.is_empty(), rewrite.metadata.age(), name, at);
            ranked.insert((pool.clone(), rank), rewrite_rule(rule));
        }
    }
    for ((pool, _), rule) in ranked {
        let own = lowering.directives.pools.entry(pool).or_default();
        own.rewrites.push(rule);
    }
    lowering.directives.problems = lowering.notes.problems;
    lowering.directives
}

/// What an objective and a rewrite have in common.
type Parts<T> = fn(&T) -> (&Meta, &PoolRef);

fn of_objective(objective: &InferenceObjective) -> (&Meta, &PoolRef) {
    (&objective.metadata, &objective.spec.pool_ref)
}

fn of_rewrite(rewrite: &InferenceModelRewrite) -> (&Meta, &PoolRef) {
    (&rewrite.metadata, &rewrite.spec.pool_ref)
}

fn pool_of(name: &ObjectName, to: &PoolRef) -> ObjectName {
    ObjectName::new(&name.namespace, &to.name)
}

struct Lowering<'a> {
    objects: &'a Objects,
    notes: Notes,
    directives: Directives,
}

impl<'a> Lowering<'a> {
    /// Those that count, by name; says of each how it fares.
    fn effective<T>(
        &mut self,
        all: &'a TwoGroups<T>,
        (current, legacy): (Kind, Kind),
        parts: Parts<T>,
    ) -> Vec<(&'a ObjectName, &'a T)> {
        let hidden = |name: &&ObjectName| all.current.contains_key(*name);
        let mut effective = Vec::with_capacity(all.current.len());
        for (name, object) in &all.legacy {
            let (meta, pool) = parts(object);
            if hidden(&name) {
                let message = format!("the {current} of this name in the newer API group counts");
                let fault = Fault::new(reason::SHADOWED, message);
                self.say(legacy, name, meta, Some(&fault));
            } else {
                self.check(legacy, name, meta, pool);
                effective.push((name, object));
            }
        }
        for (name, object) in &all.current {
            let (meta, pool) = parts(object);
            self.check(current, name, meta, pool);
            effective.push((name, object));
        }
        effective
    }

    fn check(&mut self, kind: Kind, name: &ObjectName, meta: &Meta, pool: &PoolRef) {
        let pool = pool_of(name, pool);
        let missing = !self.objects.pools.contains_key(&pool);
        let fault = missing.then(|| {
            let message = format!("InferencePool {pool} does not exist; this has no effect");
            Fault::new(reason::NOT_FOUND, message)
        });
        if let Some(fault) = &fault {
            self.notes.add(kind, name, "spec.poolRef.name", fault);
        }
        self.say(kind, name, meta, fault.as_ref());
    }

    fn say(&mut self, kind: Kind, name: &ObjectName, meta: &Meta, fault: Option<&Fault>) {
        let conditions = vec![Condition::of(reason::ACCEPTED, fault)];
        self.directives.statuses.push(ObjectStatus {
            conditions,
            ..ObjectStatus::new(kind, name, meta.generation)
        });
    }
}

fn rewrite_rule(rule: &ModelRule) -> RewriteRule {
    let models = rule.matches.iter().map(|m| m.model.value.as_str().into());
    let targets = rule.targets.iter().map(|target| RewriteTarget {
        weight: target.weight.unwrap_or(1),
        model: target.model_rewrite.as_str().into(),
    });
    RewriteRule {
        models: models.collect(),
        targets: targets.collect(),
    }
}
