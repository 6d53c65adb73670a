//! The base image of a server that has none yet: it is built while the server answers, which
//! says what it waits for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_control::Control;
use dormouse_jobs::Clock;
use dormouse_node::{ImageSource, Images, Node, Recipe};
use dormouse_provider::{Count, HealthCheck, HealthSource, HealthState};
use dormouse_store::Db;
use dormouse_types::HostId;

use crate::config::Config;

/// How often a server that may not build its image looks for one.
const LOOK: Duration = Duration::from_secs(2);

/// After a failure, how long until it is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// What creations wait for; nothing: the image is there.
#[derive(Debug, Clone, Default)]
pub(super) struct BaseImage(Arc<Mutex<Option<String>>>);

impl BaseImage {
    fn sentence(&self) -> Option<String> {
        // A sentence: a panic elsewhere cannot tear it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn say(&self, control: &Control, sentence: Option<String>) {
        control.wait_for_image(sentence.clone());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sentence;
    }

    /// Finds out whether the image is there.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn look(
        &self,
        config: &Config,
        db: &Db,
        host: &HostId,
        control: &Control,
    ) -> anyhow::Result<()> {
        let name = &config.sandbox.image;
        if db.image(host, name).await?.is_none() {
            tracing::warn!(image = name, "there is no such base image yet");
            let sentence = if config.images.build_missing {
                format!("the base image {name:?} is being built; try again in some minutes")
            } else {
                format!("this server has no base image {name:?} yet; `dormouse image build` makes it")
            };
            self.say(control, Some(sentence));
        }
        Ok(())
    }

    /// Builds the image, or waits until somebody else did.
    pub(super) async fn provide(self, config: Config, images: Images, control: Control) {
        let name = config.sandbox.image.clone();
        while self.sentence().is_some() {
            match images.has(&name).await {
                Ok(true) => {
                    self.say(&control, None);
                    tracing::info!(image = name, "the base image is there");
                    return;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "look for the base image"),
            }
            if !config.images.build_missing {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            // One that is no recipe's is for whoever configured it.
            let recipe = name.parse().unwrap_or(Recipe::DEFAULT);
            let (shown, told, image) = (self.clone(), control.clone(), name.clone());
            let progress = move |step: &str| {
                tracing::debug!(image, step, "build the base image");
                let sentence =
                    format!("the base image {image:?} is being built ({step}); try again in some minutes");
                shown.say(&told, Some(sentence));
            };
            tracing::info!(image = name, recipe = recipe.name(), "building the base image");
            let now = Clock::system().now();
            if let Err(error) = images.build(&name, ImageSource::Recipe(recipe), now, progress).await {
                let error = anyhow::Error::new(error);
                tracing::error!(image = name, "build the base image: {error:#}");
                let sentence = format!(
                    "the base image {name:?} could not be built; it is tried again every minute, and the log of \
                     the server says why"
                );
                self.say(&control, Some(sentence));
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// The health of `node` with that of the image.
    pub(super) fn beside(&self, node: Arc<Node>) -> WithBaseImage {
        WithBaseImage { node, image: self.clone() }
    }
}

/// Health of a host and of its base image.
#[derive(Debug)]
pub(super) struct WithBaseImage {
    node: Arc<Node>,
    image: BaseImage,
}

impl HealthSource for WithBaseImage {
    fn health(&self) -> Vec<HealthCheck> {
        let mut checks = self.node.health();
        let detail = self.image.sentence();
        let state = if detail.is_some() { HealthState::Failing } else { HealthState::Ok };
        checks.push(HealthCheck { name: "image", state, detail });
        checks
    }

    fn counts(&self) -> Vec<Count> {
        self.node.counts()
    }
}
