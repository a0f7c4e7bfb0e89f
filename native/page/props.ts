/** What /props says of SelfExtend. Lengths in tokens. */
export interface SelfExtendProps {
	is_extended: boolean;
	n_ctx_train: number;
	n_ctx_reach: number;
	ga_n_max: number;
	ga_w?: number;
	ga_map?: string;
	n_layer_fused?: number;
	n_layer_composed?: number;
	/** Why it is a plain context, although it was asked for a longer one. */
	refused?: string;
}

/** Where the trained window ends on a gauge, in percent of the context; null: beyond its end, or nowhere. */
export function markPercent(nTrain: number | null, nTotal: number | null): number | null {
	if (nTrain === null || nTotal === null || nTrain <= 0 || nTrain >= nTotal) return null;

	return (nTrain / nTotal) * 100;
}

/** What the gauge says of the window, in a sentence or two; null: nothing. */
export function windowSentence(
	props: SelfExtendProps | null,
	nTotal: number | null,
	nUsed: number
): string | null {
	if (props === null) return null;

	const nTrain = props.n_ctx_train;

	if (props.refused) {
		return `Ends at the trained window of ${nTrain.toLocaleString()} tokens: ${props.refused}.`;
	}

	if (!props.is_extended || nTotal === null || nTotal <= nTrain) return null;

	if (nUsed <= nTrain) {
		return `The model was trained on ${nTrain.toLocaleString()} tokens. Beyond them SelfExtend goes on.`;
	}

	return `${(nUsed - nTrain).toLocaleString()} tokens beyond the ${nTrain.toLocaleString()} that the model was trained on: SelfExtend reads them.`;
}
