//! Objects from one version of their kind into another.

use api::{Object, Status};

use crate::registry::Registry;
use crate::resource::Resource;

impl Registry {
    /// An object of one row as an object of another row that shows the same stored objects.
    ///
    /// # Errors
    /// When it cannot be converted.
    pub(crate) async fn convert(
        &self,
        mut object: Object,
        from: &Resource,
        to: &Resource,
    ) -> Result<Object, Status> {
        from.strategy.to_stored(&mut object);
        to.strategy.from_stored(&mut object);
        object.set(&["apiVersion"], to.api_version());
        object.set(&["kind"], to.kind.clone());
        Ok(object)
    }
}
