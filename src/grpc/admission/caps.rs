//! The places that calls take: which calls count against which limit, and for whom.

use std::sync::Arc;

use crate::{
    grpc::call::{
        methods::{Kind, kind},
        places::{Holder, NoPlace, Place, Places, Share},
        status::CallError,
    },
    metrics::Rejection,
    state::{CallInProgress, StateCell},
};

/// The most calls of reflection at once. People and tools ask it once, when they start.
const MAX_REFLECTIONS: usize = 64;

/// The places of the calls of all services. Clones share them.
#[derive(Clone)]
pub(super) struct CallPlaces {
    /// Held from a call's headers on, since a message is stored while it arrives.
    classifying: Arc<Places>,
    /// Health checks, and watches until they end.
    health: Arc<Places>,
    reflection: Arc<Places>,
}

/// How many calls of each kind may be in progress.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct CallLimits {
    pub calls: usize,
    /// Load balancers keep a health watch on each of their connections.
    pub health: usize,
    pub share: Share,
}

/// What a call holds of the limits.
#[derive(Default)]
pub(super) struct CallPlace {
    /// Given back when the call is answered, as what a draining server waits for.
    pub _until_answered: Option<(Place, CallInProgress)>,
    /// Kept until all answers of the call have been sent, which may be never.
    pub until_sent: Option<Place>,
}

impl CallPlaces {
    pub fn new(limits: CallLimits) -> Self {
        let places = |limit| Places::new(limit, limits.share);
        Self {
            classifying: places(limits.calls),
            health: places(limits.health),
            reflection: places(MAX_REFLECTIONS),
        }
    }

    /// Takes the place that a call of this path needs. A draining server waits for a classifying
    /// call from its headers on.
    ///
    /// # Errors
    /// When there is none; its [`reason`] is for the metrics.
    pub fn take(
        &self,
        path: &str,
        holder: Option<Holder>,
        state: &StateCell,
    ) -> Result<CallPlace, CallError> {
        let (places, what) = match kind(path) {
            Kind::Classifying => (&self.classifying, "calls in progress"),
            Kind::Health => (&self.health, "health checks and watches"),
            Kind::Reflection => (&self.reflection, "calls of reflection"),
            Kind::Other => return Ok(CallPlace::default()),
        };
        let is_classifying = kind(path) == Kind::Classifying;
        match places.take(holder) {
            Ok(place) if is_classifying => Ok(CallPlace {
                _until_answered: Some((place, state.call())),
                until_sent: None,
            }),
            Ok(place) => Ok(CallPlace {
                _until_answered: None,
                until_sent: Some(place),
            }),
            Err(NoPlace::Taken { limit }) if is_classifying => {
                Err(CallError::TooManyCalls { open: limit })
            }
            Err(NoPlace::Taken { limit }) => Err(CallError::TooManyOpen { open: limit, what }),
            Err(NoPlace::Share { held, limit }) => {
                Err(CallError::ClientLimit { held, limit, what })
            }
        }
    }
}

/// The reason for which a call got no place.
pub(super) fn reason(error: &CallError) -> Rejection {
    match error {
        CallError::ClientLimit { .. } => Rejection::ClientLimit,
        _ => Rejection::CallLimit,
    }
}
